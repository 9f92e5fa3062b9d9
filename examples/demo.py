"""What `make demo` runs: a private farm on this machine renders one image.

A farm with two slots starts (`chorale up`), an image is submitted, a group of two ranks renders it, and
`chorale watch` shows the progress. Then the image is verified and exported. Everything goes into out/demo.
The last lines say how to open it on the board; `make demo OPEN=1` does so until Ctrl-C.
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
IMAGE = ["a red vase on a wooden table", "--size", "1024x1024", "--seed", "7", "--ranks", "2"]
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
    batch = _json("submit", *IMAGE)["batch"]
    (job,) = _json("list", "--batch", batch)["jobs"]
    # `watch` owns the terminal: it draws the progress.
    for words in (("watch", "--batch", batch, "--until-done"), ("wait", "--batch", batch)):
        code = _run(*words)
        if code:
            return code, job["id"]
    image = OUT / "chorale" / "images" / _json("show", job["id"])["folder"]
    picture = OUT / "picture.png"
    code = _run("verify", str(image)) or _run("export", str(image), str(picture), "--force")
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
        return _run("serve", "--open", "--path", path)
    except KeyboardInterrupt:
        return 0


def _wait_for_a_node(farm: subprocess.Popen[bytes]) -> None:
    while not any(node["up"] for node in _json("nodes")["nodes"]):
        if farm.poll() is not None:
            sys.exit(f"the farm did not start; {OUT / 'farm.log'} says why")
        time.sleep(0.5)


def _json(*words: str) -> dict[str, Any]:
    """What a verb says with --json."""
    called = subprocess.run([CHORALE, *words, "--json"], env=os.environ | FARM, stdout=subprocess.PIPE)
    if called.returncode:
        sys.exit(called.returncode)
    result: dict[str, Any] = json.loads(called.stdout.splitlines()[-1])
    return result


def _run(*words: str) -> int:
    print("$ chorale " + " ".join(f'"{word}"' if " " in word else word for word in words), flush=True)
    return subprocess.run([CHORALE, *words], env=os.environ | FARM).returncode


if __name__ == "__main__":
    sys.exit(main())
