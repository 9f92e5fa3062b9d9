"""Settings for the whole suite."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.buckets import Bucket, moto_server, swift_server

# Ranks run with one thread each, on machines that others share; the oracle must too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A slow machine is not a wrong result: no test fails by the clock.
settings.register_profile("chorale", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.load_profile("chorale")


@pytest.fixture(scope="session")
def moto() -> Iterator[Bucket]:
    """A bucket on moto."""
    with moto_server() as bucket:
        yield bucket


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """A bucket on OpenStack Swift."""
    with swift_server(tmp_path_factory.mktemp("swift")) as bucket:
        yield bucket
