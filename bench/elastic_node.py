"""One node of the group of `bench.elastic_nodes`: `python -m bench.elastic_node PLACE ADDRESS HOST PORT OUT`.

It renders one image with the others and prints its events as lines of JSON, each with its time. The secret
of the group comes by CHORALE_GROUP_SECRET. Lines of its standard input name another first node; when it is
closed and the image is done, this process ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

from bench.elastic_image import SMALL, request_for
from jobs.node.network import interface_of
from render.errors import RenderError
from render.events import Event
from render.launch.rank_group import RankGroup
from render.launch.rendezvous_config import SECRET_VARIABLE, Move, Rendezvous

NODES, RANKS_OF_NODE = 2, 2


def main() -> None:
    """Render, and say how that has ended."""
    place, address, host, port, out = sys.argv[1:]
    rendezvous = Rendezvous(
        nodes=NODES,
        place=int(place),
        host=host,
        port=int(port),
        interface=interface_of(address),
        secret=os.environ[SECRET_VARIABLE],
        moves=True,
    )
    group, closed = RankGroup(RANKS_OF_NODE, rendezvous=rendezvous), threading.Event()
    threading.Thread(target=_read, args=(group, closed), daemon=True).start()
    try:
        group.render(request_for(SMALL, out, last=False), _say)
        _print({"ended": "done"})
        closed.wait()
    except RenderError as exc:
        _print({"ended": f"{type(exc).__name__}: {exc}"})
    finally:
        group.close()


def _read(group: RankGroup, closed: threading.Event) -> None:
    for line in sys.stdin:
        values = json.loads(line)
        group.move(Move(**values | {"nodes": tuple(values["nodes"])}))
    closed.set()


def _say(event: Event) -> None:
    _print({"event": json.loads(event.to_json())})


def _print(values: dict[str, object]) -> None:
    # The clock is the machine's, so that times of several processes can be compared.
    print(json.dumps(values | {"time": time.monotonic()}), flush=True)


if __name__ == "__main__":
    main()
