"""The roots that one undisturbed rank renders: `python -m tests.support.oracle SPECS.json ROOTS.json`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from render.spec import Spec


def roots_of(specs: dict[str, dict[str, Any]], folder: Path) -> dict[str, str]:
    """Key -> root, for key -> spec; rendered one after another by a process with one thread."""
    (folder / "specs.json").write_text(json.dumps(specs))
    words = ["-m", "tests.support.oracle", str(folder / "specs.json"), str(folder / "roots.json")]
    subprocess.run([sys.executable, *words], check=True)
    roots: dict[str, str] = json.loads((folder / "roots.json").read_text())
    return roots


def roots_here(specs: Sequence[Spec]) -> list[str]:
    """The roots of specs of the built-in model; rendered one after another in this process, by one thread."""
    import torch

    from render.distributed import SingleRankGroup
    from render.engine import render_image
    from render.models import load_adapter
    from render.models.folder import read_model_info, resolve_model
    from tests.support.sinks import MemorySink

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        device, folder = torch.device("cpu"), resolve_model("builtin")
        adapter = load_adapter(folder, device, "float32", read_model_info(folder))
        group = SingleRankGroup()
        return [render_image(spec, adapter, group, MemorySink(), device=device).root for spec in specs]
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    from render.spec import Spec

    found = json.loads(Path(sys.argv[1]).read_text())
    roots = roots_here([Spec.from_mapping(values) for values in found.values()])
    Path(sys.argv[2]).write_text(json.dumps(dict(zip(found, roots, strict=True))))


if __name__ == "__main__":
    main()
