"""What networks do to a store: nothing is lost, nothing is doubled, and the image is the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.errors import StoreRetryable
from infra.store.open import open_store
from infra.store.s3_client import forget_clients
from tests.support.buckets import Bucket, credentials
from tests.support.fault_table import CONFLICT, FAULTS, QUIET, try_fault
from tests.support.faults import Fault, fault_proxy


@pytest.fixture
def bucket(moto: Bucket) -> Iterator[Bucket]:
    with credentials(moto):
        yield moto
    forget_clients()


@pytest.mark.parametrize("name", FAULTS)
def test_an_image_is_published_whatever_happens(bucket: Bucket, name: str) -> None:
    outcome = try_fault(bucket, name)
    assert outcome.holds, outcome
    assert (outcome.tries > 0) == (name not in QUIET), outcome


def test_a_lost_answer_to_a_conditional_write_is_no_conflict(bucket: Bucket) -> None:
    with fault_proxy(bucket.endpoint) as proxy:
        proxy.faults.append(Fault(kind="lost answer", path="m.json"))
        store = bucket.at(proxy.url).store(bucket.fresh_url())
        assert store.put_if_absent("m.json", b"ours", "application/json") is True
        assert proxy.seen("PUT", "m.json") == 2 and proxy.seen("GET", "m.json") == 1
        assert store.put_if_absent("m.json", b"theirs", "application/json") is False


def test_409_is_told_as_worth_another_try(bucket: Bucket) -> None:
    with fault_proxy(bucket.endpoint) as proxy:
        proxy.faults.append(Fault(kind="status", path="m.json", **CONFLICT))
        store = bucket.at(proxy.url).store(bucket.fresh_url())
        with pytest.raises(StoreRetryable, match="try again"):
            store.put_if_absent("m.json", b"ours", "application/json")
        assert store.put_if_absent("m.json", b"ours", "application/json") is True


@pytest.mark.parametrize("conditions", ["refused", "off"])
def test_a_store_without_conditional_writes_is_served_by_reading_back(
    bucket: Bucket, conditions: str
) -> None:
    with fault_proxy(bucket.endpoint) as proxy:
        settings = bucket.at(proxy.url).settings(s3_conditional_writes="no" if conditions == "off" else "yes")
        store = open_store(bucket.fresh_url(), settings)
        for data, stored in ((b"ours", True), (b"theirs", False)):
            if conditions == "refused":
                # The conditional write alone; the plain one that follows goes through.
                refusal = {"status": "501 Not Implemented", "code": "NotImplemented"}
                proxy.faults = [Fault(kind="status", path="m.json", **refusal)]
            assert store.put_if_absent("m.json", data, "application/json") is stored
        assert store.get("m.json") == b"ours"
