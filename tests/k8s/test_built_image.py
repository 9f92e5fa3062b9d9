"""The container image, really built: small, and content with a read-only root and an unknown user."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from render.launch.shared_memory import MORE_SHARED_MEMORY
from tests.support.cli import chorale, last_json
from tests.support.container_image import USER, ContainerImage, built_image

pytestmark = [pytest.mark.image, pytest.mark.timeout(2400)]

MOST_BYTES = 1_500_000_000
PICTURE = ("render", "a red vase", "--size", "192x128", "--steps", "3", "--json")
FARM = {"CHORALE_DATABASE_URL": "sqlite:////home/chorale/farm.db", "CHORALE_STORE_URL": "file:///images"}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerImage]:
    folder = tmp_path_factory.mktemp("image")
    for parent in (folder, *folder.parents):
        # The container's user has to get to its volumes.
        if parent != Path("/") and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    with built_image(folder) as image:
        yield image


@pytest.fixture
def volumes(image: ContainerImage, tmp_path: Path) -> dict[str, Path]:
    """Those that the image declares, and one for pictures."""
    wanted = {
        path: tmp_path / path.strip("/").replace("/", "-") for path in [*image.config["Volumes"], "/images"]
    }
    for folder in wanted.values():
        folder.mkdir()
    return wanted


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The root of the picture that this machine's own environment renders on one rank."""
    out = tmp_path_factory.mktemp("oracle") / "image"
    return str(last_json(chorale(*PICTURE, "--ranks", "1", "--out", str(out)).stdout)["root"])


def test_it_is_small_and_its_own_layer_is_smaller(image: ContainerImage) -> None:
    print("layers, in MB:", [round(size / 1e6, 1) for size in image.layers])
    assert sum(image.layers) < MOST_BYTES
    # A new version of ours is this layer alone.
    assert image.layers[-1] < 60_000_000


def test_it_holds_what_runs_and_no_more(image: ContainerImage) -> None:
    assert image.config["User"] == "10001:10001"
    assert not list(image.root.glob("opt/chorale/bin/pip*"))
    assert not (image.root / "opt" / "pip").exists() and not (image.root / "src").exists()
    assert not list(image.root.glob("opt/chorale/lib/python3.11/site-packages/tests"))


def test_a_sentence_names_the_shared_memory_that_is_small(
    image: ContainerImage, volumes: dict[str, Path]
) -> None:
    ran = image.run("doctor", "--no-services", "--json", volumes=volumes, shm="64m")
    assert ran.returncode == 0, ran.stderr
    findings = {each["name"]: each for each in last_json(ran.stdout)["findings"]}
    told = findings["shared memory"]["detail"]
    assert told.startswith("64.0 MiB in /dev/shm") and told.endswith(MORE_SHARED_MEMORY), told
    large = image.run("doctor", "--no-services", "--json", volumes=volumes, shm="1g")
    findings = {each["name"]: each for each in last_json(large.stdout)["findings"]}
    assert findings["shared memory"]["detail"] == "1.0 GiB in /dev/shm"


def test_nothing_but_volumes_can_be_written(image: ContainerImage, volumes: dict[str, Path]) -> None:
    look = "find / -xdev -writable ! -type l; touch /new; id -u; getent passwd $(id -u)"
    ran = image.run("-c", look, volumes=volumes, entry=["sh"])
    assert set(ran.stdout.split()) == {*volumes, USER} and "Read-only file system" in ran.stderr, ran


def test_it_renders_the_picture_that_this_machine_renders(
    image: ContainerImage, volumes: dict[str, Path], oracle: str
) -> None:
    ran = image.run(*PICTURE, "--ranks", "2", "--out", "/images/picture", volumes=volumes)
    assert ran.returncode == 0, ran.stderr
    assert last_json(ran.stdout)["root"] == oracle
    assert chorale("verify", str(volumes["/images"] / "picture")).returncode == 0


def test_its_agent_renders_a_job_and_ends_in_order(
    image: ContainerImage, volumes: dict[str, Path], oracle: str
) -> None:
    agent = image.start(
        *("agent", "--name", "n1", "--slots", "1"),
        volumes=volumes,
        environment=FARM,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        call = _caller(image, volumes)
        words = ("--size", "192x128", "--steps", "3", "--ranks", "1", "--json")
        submitted = last_json(call("submit", "a red vase", *words).stdout)
        (job,) = submitted["jobs"]
        waited = call("wait", job["id"], "--json")
        assert waited.returncode == 0, waited
        assert last_json(call("show", job["id"], "--json").stdout)["root"] == oracle
        assert call("drain", "n1").returncode == 0
    finally:
        # tini, the container's first process, passes it on.
        psutil.Process(agent.pid).children()[0].terminate()
        try:
            output, _ = agent.communicate(timeout=120)
        finally:
            agent.kill()
        print(output[-2000:])
    assert agent.returncode == 0


def _caller(
    image: ContainerImage, volumes: dict[str, Path]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return image.run(*words, volumes=volumes, environment=FARM)

    return call
