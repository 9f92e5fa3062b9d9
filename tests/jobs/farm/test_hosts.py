"""One image across two hosts: network namespaces, real Redis, real PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli import chorale, last_json, ranks_with, wait_until
from tests.support.machines import Machines
from tests.support.network import network
from tests.support.services import postgres_server, redis_server

IMAGE = ("a red vase on marble", "--size", "1024x1024", "--steps", "4", "--strength", "0.5", "--seed", "3")


@pytest.mark.timeout(400)
def test_one_image_across_two_hosts_is_the_image_of_one_rank(tmp_path: Path) -> None:
    with (
        network(2) as hosts,
        postgres_server(tmp_path, hosts.gateway) as database,
        redis_server(tmp_path, hosts.gateway) as broker,
    ):
        farm = Machines(tmp_path, database, CHORALE_BROKER_URL=broker)
        try:
            for number in range(2):
                farm.boot(f"n{number}", address=hosts.address(number), prefix=tuple(hosts.on(number)))
            farm.call("submit", *IMAGE, "--ranks", "2")
            wait_until(lambda: len(ranks_with(farm.mark)) == 2, 120)
            done = farm.wait("done", 200)
        finally:
            farm.shut_down()
    out = str(tmp_path / "alone")
    alone = last_json(chorale("render", *IMAGE, "--ranks", "1", "--out", out, "--json").stdout)
    assert done["root"] == alone["root"]
    assert "placed on n0, n1" in done["events"][1]["reason"]
