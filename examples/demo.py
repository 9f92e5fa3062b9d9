"""What `make demo` runs: a farm of its own on this machine, one picture through it, and a look at it.

A farm of two slots starts (`chorale up`), a picture is submitted to it, a group of two ranks renders it,
`watch` follows, then the picture is verified and exported. Everything goes into out/demo. It ends with the
address where the board shows the picture; `make demo OPEN=1` serves it there until Ctrl-C.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OUT = Path("out/demo")
CHORALE = str(Path(sys.executable).with_name("chorale"))
PICTURE = ["a red vase on a wooden table", "--size", "1024x1024", "--seed", "7", "--ranks", "2"]
FARM = {"XDG_DATA_HOME": str(OUT.resolve()), "CHORALE_DATABASE_URL": "", "CHORALE_STORE_URL": ""}
BOARD = "http://127.0.0.1:8470"


def main() -> int:
    """Run the demo; chorale's exit code."""
    OUT.mkdir(parents=True, exist_ok=True)
    print(f"$ chorale up --slots 2 --no-board      (its log: {OUT / 'farm.log'})", flush=True)
    with (OUT / "farm.log").open("w") as log:
        farm = subprocess.Popen(
            [CHORALE, "up", "--slots", "2", "--no-board"],
            env=os.environ | FARM,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        code, job = _render(farm)
    finally:
        farm.send_signal(signal.SIGINT)
        farm.wait(30)
    return code or _show(f"/jobs/{job}/view")


def _render(farm: subprocess.Popen[bytes]) -> tuple[int, str]:
    """(exit code, the job)"""
    _wait_for_a_node(farm)
    batch = _told("submit", *PICTURE)["batch"]
    (job,) = _told("list", "--batch", batch)["jobs"]
    # The terminal is watch's: it draws the progress.
    for words in (("watch", "--batch", batch, "--until-done"), ("wait", "--batch", batch)):
        code = _shown(*words)
        if code:
            return code, job["id"]
    image = OUT / "chorale" / "images" / _told("show", job["id"])["digest"]
    picture = OUT / "picture.png"
    code = _shown("verify", str(image)) or _shown("export", str(image), str(picture), "--force")
    if code == 0:
        shutil.copyfile(image / "preview.webp", OUT / "preview.webp")
        print(f"Look at {picture}, at {OUT / 'preview.webp'} (small) or {image / 'image.dzi'} (deep zoom).")
    return code, job["id"]


def _show(path: str) -> int:
    """Serve the board at the picture, or say how."""
    if os.environ.get("OPEN") != "1":
        print(f"Zoom into it at {BOARD}{path} once the board runs (or: make demo OPEN=1):")
        print(f"  XDG_DATA_HOME={FARM['XDG_DATA_HOME']} {CHORALE} serve")
        return 0
    print(f"Zoom into it at {BOARD}{path}", flush=True)
    try:
        return _shown("serve", "--open", "--path", path)
    except KeyboardInterrupt:
        return 0


def _wait_for_a_node(farm: subprocess.Popen[bytes]) -> None:
    while not any(node["up"] for node in _told("nodes")["nodes"]):
        if farm.poll() is not None:
            sys.exit(f"the farm did not start; {OUT / 'farm.log'} says why")
        time.sleep(0.5)


def _told(*words: str) -> dict[str, Any]:
    """What a verb says with --json."""
    called = subprocess.run([CHORALE, *words, "--json"], env=os.environ | FARM, stdout=subprocess.PIPE)
    if called.returncode:
        sys.exit(called.returncode)
    result: dict[str, Any] = json.loads(called.stdout.splitlines()[-1])
    return result


def _shown(*words: str) -> int:
    print("$ chorale " + " ".join(f'"{word}"' if " " in word else word for word in words), flush=True)
    return subprocess.run([CHORALE, *words], env=os.environ | FARM).returncode


if __name__ == "__main__":
    sys.exit(main())
