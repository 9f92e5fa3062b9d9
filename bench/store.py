"""The object store: tiles per second against bare boto3, what uploading costs a render, and the faults."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import boto3

from bench.image import SPEC
from bench.launch import run_case
from bench.table import Row
from render.output.tile_writer import UPLOADS, TileWriter
from render.spec import Spec
from tests.support.buckets import Bucket, credentials, moto_server, swift_server
from tests.support.fault_table import FAULTS, QUIET, outage, try_fault
from tests.support.faults import fault_proxy
from tests.support.network import network

_TILES, _BYTES = 2000, 20_000
_TURNS = 3
_NETEM = ("delay", "20ms", "rate", "1gbit")


def request_rows() -> list[Row]:
    """The same bytes to the same server, in turns: our way of storing tiles, and threads of bare boto3."""
    tiles = [os.urandom(_BYTES) for _ in range(_TILES)]
    ratios = []
    with moto_server() as bucket, credentials(bucket):
        for turn in range(_TURNS):
            ways = [_store_barely, _store_ours]
            # By turns first, so that a server that slows down with its files favours neither.
            seconds = {way: _seconds(way, bucket, tiles) for way in (ways if turn % 2 else ways[::-1])}
            ratios.append(seconds[_store_barely] / seconds[_store_ours])
    return [Row("2,000 tiles of 20 kB: our requests per second over bare boto3's", median(ratios), ">= 0.85")]


def _store_ours(bucket: Bucket, tiles: list[bytes]) -> None:
    store = bucket.store(bucket.fresh_url(), patience_s=60.0)
    with TileWriter(Spec(prompt="x"), store, None) as writer:
        for number, tile in enumerate(tiles):
            writer.put_extra(f"image_files/12/{number}_0.png", tile, "image/png")


def _store_barely(bucket: Bucket, tiles: list[bytes]) -> None:
    client, prefix = boto3.client("s3", endpoint_url=bucket.endpoint), bucket.fresh_url().rpartition("/")[2]

    def put(number: int) -> None:
        key = f"{prefix}/image_files/12/{number}_0.png"
        client.put_object(Bucket=bucket.name, Key=key, Body=tiles[number], ContentType="image/png")

    with ThreadPoolExecutor(UPLOADS) as pool:
        list(pool.map(put, range(len(tiles))))


def upload_rows() -> list[Row]:
    """A render on a host behind a slow link, into a folder there and into a bucket, in turns."""
    spec = SPEC | {"width": 1024, "height": 1024, "steps": 3, "tile_size": 256}
    locals_, remotes = [], []
    with _linked() as (link, prefix, bucket), credentials(bucket), tempfile.TemporaryDirectory() as folder:
        for turn in range(_TURNS):
            for runs, out in ((locals_, f"{folder}/{turn}"), (remotes, bucket.fresh_url())):
                case = {"kind": "image", "spec": spec, "out": out}
                runs.append(run_case(case, prefix=prefix))
    assert len({run["root"] for run in locals_ + remotes}) == 1, "roots differ"
    figures = "seconds", "cpu_seconds"
    local, cpu_local = (min(run[figure] for run in locals_) for figure in figures)
    remote, cpu_remote = (min(run[figure] for run in remotes) for figure in figures)
    waiting = median(map(_besides, remotes)) - median(map(_besides, locals_))
    over = f"1 Gbit/s with 20 ms ({link})"
    return [
        Row("1024x1024, 3 steps, one rank, into a folder: seconds, the least of three", local, ""),
        Row(f"into S3 over {over}: times as long, by the clock", remote / local, "<= 1.05"),
        Row(f"into S3 over {over}: times as long, in CPU seconds", cpu_remote / cpu_local, "<= 1.05"),
        Row(f"into S3 over {over}: share of a render spent waiting", waiting / local, "<= 0.05"),
    ]


def _besides(run: dict[str, Any]) -> float:
    """Seconds in which the render did nothing of its own: encoding's and uploading's tails, requests."""
    own = sum(run["timings"][phase] for phase in ("model", "fuse", "enlarge", "decode", "wait"))
    return float(run["seconds"] - own)


@contextmanager
def _linked() -> Iterator[tuple[str, tuple[str, ...], Bucket]]:
    """What makes the link, the prefix of commands on its far side, and a bucket across it.

    The kernel's netem where it has it; elsewhere a proxy that holds every connection, request and Expect
    back for as long, and bodies by their length.
    """
    with network(1) as hosts, moto_server(hosts.gateway) as bucket:
        prefix = tuple(hosts.on(0))
        links = [*prefix, "ip", "-o", "link", "show", "type", "veth"]
        shown = subprocess.run(links, capture_output=True, text=True, check=True).stdout
        device = shown.split()[1].partition("@")[0]
        words = [*prefix, "tc", "qdisc", "add", "dev", device, "root", "netem", *_NETEM]
        if subprocess.run(words, capture_output=True).returncode == 0:
            yield "netem", prefix, bucket
            return
        with fault_proxy(bucket.endpoint, hosts.gateway) as proxy:
            proxy.delay_s, proxy.bytes_per_s = 0.020, 1e9 / 8
            yield "a proxy's, since this kernel has no netem", prefix, bucket.at(proxy.url)


def fault_lines() -> list[str]:
    """Fault, tries, outcome: on both servers, an image published through each fault."""
    lines = ["| server | fault | extra requests | outcome |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as name:
        for server, serving in (("moto", moto_server()), ("Swift", swift_server(Path(name)))):
            with serving as bucket, credentials(bucket):
                for fault, begin in (FAULTS | {"outage of 20 s": outage(20.0)}).items():
                    outcome = try_fault(bucket, fault, begin)
                    assert (outcome.tries > 0) == (fault not in QUIET), f"{fault} has not happened: {outcome}"
                    lost, doubled = outcome.lost or "nothing", outcome.doubled or "nothing"
                    same = "same root" if outcome.same_root and outcome.done else "ANOTHER ROOT"
                    outcome_text = f"{lost} lost, {doubled} doubled, {same}"
                    lines.append(f"| {server} | {fault} | {outcome.tries} | {outcome_text} |")
    return lines


def _seconds(way: Callable[[Bucket, list[bytes]], None], bucket: Bucket, tiles: list[bytes]) -> float:
    started = time.perf_counter()
    way(bucket, tiles)
    return time.perf_counter() - started
