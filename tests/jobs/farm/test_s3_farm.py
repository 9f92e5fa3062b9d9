"""A farm whose images go into a bucket: ranks die, the store is away, and secrets stay where they are."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.settings import Settings
from infra.store.s3_client import forget_clients, make_client
from render.launch.request import Request
from render.model_info import ModelInfo
from render.models.model_paths import ModelPaths
from tests.support.buckets import Bucket, credentials
from tests.support.cli import chorale, last_json, processes_with, wait_until
from tests.support.faults import FaultProxy, fault_proxy
from tests.support.machines import Machines

LONG = ("a red vase", "--size", "256x256", "--steps", "24", "--strength", "1", "--seed", "5")
LONG_STEPS = 48
"""Of its two stages."""


@pytest.fixture
def bucket(swift: Bucket) -> Iterator[Bucket]:
    forget_clients()
    with credentials(swift):
        yield swift
    forget_clients()


@pytest.fixture
def proxy(bucket: Bucket) -> Iterator[FaultProxy]:
    with fault_proxy(bucket.endpoint) as made:
        yield made


@pytest.mark.timeout(300)
def test_a_farm_renders_into_a_bucket_whatever_dies_and_tells_no_secret(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    url = bucket.fresh_url()
    farm = Machines(
        tmp_path,
        f"sqlite:///{tmp_path / 'farm.db'}",
        **bucket.at(proxy.url).environment,
        CHORALE_STORE_URL=url,
        CHORALE_STORE_PATIENCE_S="1",
        CHORALE_CHECKPOINT_S="0.1",
        CHORALE_SMTP_URL="smtp://anna:planted-smtp-secret@mail.example",
    )
    texts = []
    try:
        farm.boot("n1", slots=2)
        batch = farm.call("submit", *LONG, "--ranks", "2")["batch"]
        wait_until(lambda: proxy.seen("PUT", "work/checkpoint") > 2, 120)
        texts += [text.encode() for text in processes_with(farm.mark).values()]
        directories = Path(tempfile.gettempdir()).glob("chorale-group-*/*")
        texts += [path.read_bytes() for path in directories if path.is_file()]
        farm.kill("render.launch.launcher")
        proxy.cut()
        wait_until(lambda: any("does not respond" in reason for reason in _reasons(farm.job())), 120)
        proxy.mend()
        done = farm.wait("done", 200)
        logs = farm.call("logs", done["id"])["logs"]
        results = farm.call("batches", batch, "--results", str(tmp_path / "results"))
        report = farm.call("report")
        checked = farm.call("verify", f"{url}/{done['folder']}")
    finally:
        farm.shut_down()
    out = str(tmp_path / "alone")
    alone = last_json(chorale("render", *LONG, "--ranks", "1", "--out", out, "--json").stdout)
    assert (done["root"], checked["passes"]) == (alone["root"], True)
    steps = [len(re.findall(r"^\S+ step \d+ of", text, re.MULTILINE)) for text in logs.values()]
    assert steps[-1] < LONG_STEPS, "it went on from a checkpoint"
    store = bucket.store(url)
    assert {entry.key for entry in store.entries("logs/")} >= {f"logs/{list(logs)[-1]}"}
    assert f"{url}/{done['folder']}/manifest.json" in (tmp_path / "results" / "output.jsonl").read_text()
    assert not list(store.within(done["folder"]).entries("work/"))
    texts += [repr((done, logs, results, report)).encode()]
    texts += [store.get(entry.key) for entry in store.entries()]
    texts += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text[:200] for text in texts if re.search(rb"studio-secret-key|planted-smtp-secret", text)]


def _reasons(job: dict[str, Any]) -> list[str]:
    """Why attempts ended and why the job waits: an attempt met the store, or the node's check did."""
    return [reason for reason in (job["waits_for"], *(each["reason"] for each in job["events"])) if reason]


def test_no_repr_tells_a_secret(bucket: Bucket) -> None:
    settings = Settings(
        s3_endpoint_url=bucket.endpoint,
        smtp_url="smtp://anna:planted@mail",
        database_url="postgresql://anna:planted@db/farm",
        broker_url="redis://:planted@broker/0",
    )
    store = bucket.store(bucket.fresh_url(), patience_s=1.0, observe=lambda call: None)
    info = ModelInfo(
        guidance_scale=2.0,
        family="toy",
        latent_channels=4,
        scale_factor=8,
        native_size=64,
        digest="toy",
        decode_halo=2,
    )
    request = Request(spec={}, folders=ModelPaths(model=Path("m")), info=info, device="cpu", out=store.url())
    store.put("a", b"", "text/plain")
    shown = repr((settings, store, store.within("x"), request, make_client(store._store._store.options)))
    assert not re.search("planted|studio-secret", shown) and bucket.name in shown
