"""The roots that one undisturbed rank renders: `python -m tests.support.oracle SPECS.json ROOTS.json`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def roots_of(specs: dict[str, dict[str, Any]], folder: Path) -> dict[str, str]:
    """Key -> root, for key -> spec; rendered one after another by a process with one thread."""
    (folder / "specs.json").write_text(json.dumps(specs))
    words = ["-m", "tests.support.oracle", str(folder / "specs.json"), str(folder / "roots.json")]
    subprocess.run([sys.executable, *words], check=True)
    roots: dict[str, str] = json.loads((folder / "roots.json").read_text())
    return roots


def main() -> None:
    import torch

    from render.distributed import SingleRankGroup
    from render.engine import render_image
    from render.models import load_adapter
    from render.models.folder import read_model_info, resolve_model
    from render.spec import Spec
    from tests.support.sinks import MemorySink

    torch.set_num_threads(1)
    device, folder = torch.device("cpu"), resolve_model("builtin")
    adapter = load_adapter(folder, device, "float32", read_model_info(folder))
    roots = {}
    for key, values in json.loads(Path(sys.argv[1]).read_text()).items():
        spec = Spec.from_mapping(values)
        roots[key] = render_image(spec, adapter, SingleRankGroup(), MemorySink(), device=device).root
    Path(sys.argv[2]).write_text(json.dumps(roots))


if __name__ == "__main__":
    main()
