"""Every command in docs/KUBERNETES.md is run where it needs no cluster, and taken apart where it does."""

from __future__ import annotations

import base64
import functools
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from infra.settings import Settings
from jobs.cli.main import cli
from tests.k8s.checks import problems
from tests.k8s.objects import IMAGE, TOP, Document, build, named
from tests.k8s.pod_checks import BROUGHT_ALONG, FOREIGN_VARIABLES
from tests.k8s.test_chart import helm
from tests.k8s.test_overlays import SETS
from tests.support.services import require

TEXT = (TOP / "docs" / "KUBERNETES.md").read_text(encoding="utf-8")
LINES = [
    line for block in re.findall(r"```\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines() if line
]
EXAMPLE_QUEUE = "overlays/kueue"


@pytest.mark.parametrize("line", LINES)
def test_the_command_is_right(line: str) -> None:
    first, _, second = line.partition(" | ")
    words = shlex.split(first)
    if words[0] == "docker":
        _check_docker(words)
    elif words[0] == "helm":
        _check_helm(words[1:])
    elif words[:3] == ["chorale", "k8s", "render"]:
        assert second == "kubectl -n chorale apply -f -"
        _check_rendered(words[1:])
    else:
        assert words[0] == "kubectl" and not second
        _check_kubectl(words[1:])


def test_the_secrets_are_made_that_the_manifests_want() -> None:
    made = {shlex.split(line)[6] for line in LINES if "create secret generic" in line}
    assert {name for kind, name in BROUGHT_ALONG if kind == "Secret"} <= made


def test_every_folder_is_told_of() -> None:
    for folder in SETS:
        assert f"`{Path(folder).name}`" in TEXT or f"overlays/{Path(folder).name}`" in TEXT, folder


def test_every_exit_code_of_the_failure_policy_is_told() -> None:
    job = named(build("one-image"), "Job", IMAGE)
    assert job is not None
    table = re.findall(r"^\| ([\d, ]+) \|", TEXT, re.M)
    told = {int(code) for row in table for code in row.split(",") if row.strip()}
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        assert set(rule.get("onExitCodes", {}).get("values", [])) <= told


def _check_docker(words: list[str]) -> None:
    text = (TOP / words[words.index("-f") + 1]).read_text()
    argument, _, target = words[words.index("--build-arg") + 1].partition("=")
    assert f"ARG {argument}=" in text and f"AS index-{target}\n" in text
    image = next(one for one in build("base") if one["metadata"]["name"] == "chorale-agent" and "spec" in one)
    assert words[words.index("-t") + 1] == image["spec"]["template"]["spec"]["containers"][0]["image"]


def _check_helm(words: list[str]) -> None:
    """The chart takes the values."""
    assert words[0] in ("install", "upgrade") and words[1:5] == [
        "chorale",
        "k8s/chart",
        "--namespace",
        "chorale",
    ]
    values: Document = {}
    for flag, text in zip(words[5::2], words[6::2], strict=True):
        if flag == "--values":
            values |= yaml.safe_load((TOP / text).read_text())
        else:
            assert flag == "--set"
            path, _, value = text.partition("=")
            first, _, last = path.partition(".")
            values.setdefault(first, {})[last] = value
    assert problems(helm(**values)) == []


def _check_rendered(words: list[str]) -> None:
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    objects = [*yaml.safe_load_all(result.stdout), *build("place")]
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    objects.append(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "images"}, "spec": claim}
    )
    queues = [one for one in build(EXAMPLE_QUEUE) if one["apiVersion"].startswith("kueue.")]
    assert problems([*objects, *queues]) == []


def _check_kubectl(words: list[str]) -> None:
    words, inside = (
        (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    )
    if words[0] == "-n":
        assert words[1] == "chorale"
        words = words[2:]
    _check_flags(words)
    if words[:2] == ["apply", "-f"]:
        assert yaml.safe_load((TOP / words[2]).read_text())["metadata"]["name"] == "chorale"
    elif words[0] == "apply":
        assert problems(build(words[2].removeprefix("k8s/"))) == []
    elif words[:3] == ["create", "secret", "generic"]:
        _check_secret(words)
    else:
        for kind, name in _targets(words):
            assert any(named(build(folder), kind, name) for folder in ("base", "overlays/dev")), (kind, name)
    if inside:
        assert inside[0] == "chorale"
        _check_chorale(inside[1:])


def _targets(words: list[str]) -> list[tuple[str, str]]:
    kinds = {"job": "Job", "statefulset": "StatefulSet", "service": "Service"}
    if words[0] == "exec":
        return [("StatefulSet", words[1].removesuffix("-0"))]
    if words[0] == "delete":
        return [(kinds[words[1]], words[2])]
    return [(kinds[kind], name) for kind, slash, name in (word.partition("/") for word in words) if slash]


def _check_secret(words: list[str]) -> None:
    made = subprocess.run(
        ["kubectl", *words, "--dry-run=client", "-o", "yaml"], capture_output=True, text=True, check=True
    )
    secret: Document = yaml.safe_load(made.stdout)
    held = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    known = (
        {f"CHORALE_{name.upper()}" for name in Settings.model_fields}
        | FOREIGN_VARIABLES
        | {"tokens", "secret"}
    )
    assert held.keys() <= known and all(held.values())
    trial = named(build("overlays/dev"), "Secret", words[3])
    assert trial is None or trial["data"].keys() == secret["data"].keys()


def _check_chorale(words: list[str]) -> None:
    command: click.Command = cli.commands[words[0]]
    command.make_context(words[0], words[1:])


def _check_flags(words: list[str]) -> None:
    """kubectl's own help knows every flag."""
    verb = words[: 3 if words[0] == "create" else 2 if words[0] == "rollout" else 1]
    for word in words:
        if word.startswith("-"):
            assert re.search(rf"(^|[ ,]){re.escape(word.partition('=')[0])}[=, ]", _help_of(*verb)), word


@functools.cache
def _help_of(*verb: str) -> str:
    require(shutil.which("kubectl"), "kubectl", "kubectl")
    options = subprocess.run(["kubectl", "options"], capture_output=True, text=True, check=True).stdout
    own = subprocess.run(["kubectl", *verb, "--help"], capture_output=True, text=True, check=True)
    return own.stdout + options
