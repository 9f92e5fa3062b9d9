"""Every example in the README and in the commands' help is run, with sizes made small and ids made real."""

import http.client
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from openpyxl import Workbook

from infra.store.local import LocalStore
from jobs.cli.help import examples_of
from jobs.cli.main import cli
from jobs.cli.serve import PORT
from render.models.folder import resolve_model
from tests.support.buckets import Bucket, credentials
from tests.support.cli import CHORALE, last_json, start, wait_until

ROOT = Path(__file__).parent.parent.parent
FOREVER = ("agent", "up", "serve")
"""Commands that run until they are stopped."""
CHANGE_A_JOB = ("cancel", "pause", "resume", "retry", "priority")
SMALL = (("--size", "128x128"), ("--steps", "1"))


def examples() -> list[str]:
    found = []
    for command in cli.commands.values():
        found += examples_of(command)
    readme = (ROOT / "README.md").read_text()
    for block in re.findall(r"```\n(.*?)```", readme, re.DOTALL):
        found += [line.partition("   #")[0].strip() for line in block.splitlines()]
    return sorted({line for line in found if line.startswith("chorale ")})


def test_every_command_has_an_example() -> None:
    shown = {shlex.split(line)[1] for line in examples()}
    assert cli.commands.keys() - shown == set()


class Home:
    """A farm with a done job, a node, a tile set in out/shelf, and an image in out/vase and in a bucket."""

    def __init__(self, folder: Path, bucket: Bucket) -> None:
        self.folder = folder
        self.environment = {"XDG_DATA_HOME": str(folder), "CHORALE_WARM_S": "0"} | bucket.environment
        (folder / "examples").symlink_to(ROOT / "examples")
        (folder / "out").mkdir()

    @property
    def picture(self) -> Path:
        """A small one."""
        return self.folder / "out" / "vase" / "preview.webp"

    done: tuple[str, str]
    """(job, batch) of the done one."""
    reviewed: str
    """A batch of three done images with ids."""
    rejected: str
    """A batch of one image, which is rejected."""

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CHORALE, *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=os.environ | self.environment,
            timeout=120,
        )

    def submit(self, prompt: str, *options: str) -> tuple[str, str]:
        """(job, batch) of a new image, or of those of a file."""
        small = [word for pair in SMALL for word in pair]
        receipt = last_json(self.run("submit", prompt, *small, *options, "--json").stdout)
        listed = last_json(self.run("list", "--batch", receipt["batch"], "--json").stdout)
        return listed["jobs"][0]["id"], receipt["batch"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, moto: Bucket) -> Home:
    made = Home(tmp_path_factory.mktemp("home"), moto)
    for arguments, folder in ((("a vase",), "vase"), (("--spec", "examples/shelf.yaml"), "shelf")):
        rendered = made.run(
            "render", *arguments, "--size", "128x128", "--steps", "1", "--out", f"out/{folder}"
        )
        assert rendered.returncode == 0, rendered.stderr
    with credentials(moto):
        folder, bucket = LocalStore(made.folder / "out" / "vase"), moto.store("s3://studio/vase")
        for entry in folder.entries():
            bucket.put(entry.key, folder.get(entry.key), "application/octet-stream")
    for name in ("overnight", "night"):
        assert made.run("queues", name, "--priority", "50").returncode == 0
    workbook = Workbook()
    workbook.worksheets[0].append(["SKU", "Title", "Colour"])
    workbook.worksheets[0].append(["A-1", "vase", "red"])
    workbook.save(made.folder / "feed.xlsx")
    (made.folder / "finals.csv").write_text("custom_id,prompt\nA-1,a vase\n")
    made.done = made.submit("a done vase")
    (made.folder / "reviewed.csv").write_text("custom_id,prompt\nA-1,a vase\nA-7,a bowl\nA-7-s2,a jug\n")
    _, made.reviewed = made.submit("reviewed.csv")
    (made.folder / "rejected.csv").write_text("custom_id,prompt\nB-1,a plate\n")
    _, made.rejected = made.submit("rejected.csv")
    farm = start("up", "--slots", "1", "--port", "0", **made.environment, CHORALE_NODE="n1")
    try:
        for batch in (made.done[1], made.reviewed, made.rejected):
            finished = made.run("wait", "--batch", batch, "--timeout", "100")
            assert finished.returncode == 0, finished.stderr
    finally:
        farm.send_signal(signal.SIGTERM)
        farm.communicate(timeout=60)
    assert made.run("review", made.rejected, "--reject", "B-1").returncode == 0
    return made


@pytest.mark.parametrize("line", examples())
def test_the_example_works(home: Home, line: str) -> None:
    arguments = shlex.split(line)[1:]
    if arguments[0] in FOREVER:
        process = start(*_own_address(arguments), **home.environment)
        wait_until(lambda: _answers(arguments) if arguments[0] == "serve" else _has_a_node(home), 30)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0
        return
    agent = start("agent", "--name", "n1", **home.environment) if "restart" in arguments else None
    try:
        if agent is not None:
            wait_until(lambda: _has_a_node(home), 30)
        finished = home.run(*_prepared(home, arguments))
    finally:
        if agent is not None:
            agent.send_signal(signal.SIGTERM)
            agent.communicate(timeout=60)
    assert finished.returncode == 0, (line, finished.stderr)


def _prepared(home: Home, arguments: list[str]) -> list[str]:
    """The same command, small, about things that are there."""
    verb = arguments[0]
    done, batch = home.done
    batch = home.reviewed if verb == "review" else batch
    if verb == "delete" or (
        "3fa9" in arguments and verb in ("cancel", "pause", "resume", "retry", "priority")
    ):
        done, batch = home.submit(f"for {' '.join(arguments)}")
        batch = home.rejected if "rejected" in arguments else batch
        before = {"resume": "pause", "retry": "cancel"}.get(verb)
        if before:
            home.run(before, done)
    arguments = [
        done
        if argument in ("3fa9", "8c1f00aa3b5271de")
        else batch
        if argument == "8c1f00aa3b52"
        else argument
        for argument in arguments
    ]
    if verb == "upscale":
        arguments = [
            str(home.picture) if argument == "examples/vase.webp" else argument for argument in arguments
        ]
        arguments += ["--steps", "1"]
    if verb in ("render", "submit"):
        for flag, value in SMALL:
            arguments += [flag, value]
        arguments += ["--out", f"out/{abs(hash(tuple(arguments)))}"] if verb == "render" else []
    if verb == "token":
        arguments = [argument.replace("/etc/chorale", str(home.folder)) for argument in arguments]
    if verb == "model":
        builtin = str(resolve_model("builtin"))
        arguments = [builtin if argument.startswith("models/") else argument for argument in arguments]
        if arguments[1] in ("verify", "remove"):
            # Refused where the model is there already.
            home.run("model", "add", "sdxl", builtin)
    if verb == "watch":
        arguments += ["--until-done", "--batch", batch]
    return arguments


def _own_address(arguments: list[str]) -> list[str]:
    return ["127.0.0.1" if argument == "10.0.0.11" else argument for argument in arguments]


def _has_a_node(home: Home) -> bool:
    return any(node["up"] for node in last_json(home.run("nodes", "--json").stdout)["nodes"])


def _answers(arguments: list[str]) -> bool:
    port = int(arguments[arguments.index("--port") + 1]) if "--port" in arguments else PORT
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
