"""Writes the requirements of the container image, with the hash of every file, and its SBOM: `make lock`.

Versions come from constraints.txt; the files of each version, and what only some platforms need, from PyPI.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

TOP = Path(__file__).parent.parent.parent
TARGETS = ("cpu", "cuda")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_HEAD = "# Made by `make lock` from pyproject.toml and constraints.txt; the image installs nothing else.\n"


def lock_path(target: str) -> Path:
    """The file that the image of a target is installed from."""
    return Path(__file__).parent / f"requirements-{target}.txt"


def pins(text: str) -> dict[str, str]:
    """Package -> version, of a requirements or constraints file; names in lower case with dashes."""
    found = re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;\\]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def compile_lock(target: str) -> str:
    """The text of a target's file. Raises `CalledProcessError` when uv finds no solution or no index."""
    words = ["uv", "pip", "compile", "pyproject.toml", "--constraint", "constraints.txt", "--quiet"]
    words += ["--generate-hashes", "--no-annotate", "--no-header"]
    words += ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        if target == "cpu":
            version = pins((TOP / "constraints.txt").read_text(encoding="utf-8"))["torch"]
            file.write(f"torch=={version}+cpu\n")
            file.flush()
            words += ["--constraint", file.name, *_where_torch_is()]
        made = subprocess.run(
            [sys.executable, "-m", *words], cwd=TOP, stdout=subprocess.PIPE, text=True, check=True
        )
    return _HEAD + made.stdout


def _where_torch_is() -> list[str]:
    """A folder of wheels that pip knows, else the index of the CPU builds."""
    links = os.environ.get("PIP_FIND_LINKS")
    return ["--find-links", links] if links else ["--index", CPU_INDEX]


def sbom_path(target: str) -> Path:
    """The list of a target's Python packages; the image has it as /opt/chorale/sbom.cdx.json."""
    return Path(__file__).parent / f"sbom-{target}.cdx.json"


def sbom(lock: str) -> str:
    """A CycloneDX 1.6 document of a lock file. Debian's packages are in the image's own dpkg database."""
    components = [
        {
            "type": "library",
            "bom-ref": (purl := f"pkg:pypi/{name}@{quote(version)}"),
            "name": name,
            "version": version,
            "purl": purl,
        }
        for name, version in sorted(pins(lock).items())
    ]
    document = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}
    return json.dumps(document, indent=1) + "\n"


if __name__ == "__main__":
    for each in TARGETS:
        text = compile_lock(each)
        lock_path(each).write_text(text, encoding="utf-8")
        sbom_path(each).write_text(sbom(text), encoding="utf-8")
