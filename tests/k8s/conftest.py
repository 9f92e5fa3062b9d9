"""Hosts for pods, and the picture that all of them shall come to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.cli import chorale, last_json
from tests.support.network import network
from tests.support.pods import Cluster, can_make_pods
from tests.support.services import require

SPEC = {"prompt": "a red vase on marble", "width": 256, "height": 192, "steps": 40, "tile_size": 128}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    require(can_make_pods(), "unshare and setpriv (as root)", "util-linux")
    # Tests of other checkouts may run beside us, and we talk to the pods from outside.
    with network(8) as hosts:
        made = Cluster(hosts, tmp_path, f"CHORALE_TEST_{uuid4().hex}")
        try:
            yield made
        finally:
            made.shut_down()


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The picture's root by one rank, alone."""
    folder = tmp_path_factory.mktemp("oracle")
    (folder / "spec.json").write_text(json.dumps(SPEC))
    words = ("--spec", str(folder / "spec.json"), "--ranks", "1", "--out", str(folder / "image"), "--json")
    root: str = last_json(chorale("render", *words).stdout)["root"]
    return root
