"""The stores as sinks of the engine: found by their URL's scheme, their errors told in the engine's terms."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import StoreDenied, StoreError, StoreMissing, StorePermanent, StoreRetryable, StoreUnusable
from jobs import sinks
from render.errors import BadInput, SinkError, SinkUnavailable, exit_code
from render.launch.sinks import open_sink
from render.sink import SinkCall
from tests.support.sinks import MemorySink


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_is_a_sink(tmp_path: Path, scheme: str) -> None:
    calls: list[SinkCall] = []
    sink = open_sink(f"{scheme}{tmp_path}/image", patience_s=0.0, observer=calls.append)
    sink.put("a/b.png", b"tile", "image/png")
    assert (sink.size("a/b.png"), sink.get("a/b.png"), sink.size("none")) == (4, b"tile", None)
    assert (tmp_path / "image" / "a" / "b.png").read_bytes() == b"tile"
    assert [(call.operation, call.outcome, call.bytes) for call in calls[:1]] == [("put", "ok", 4)]


@pytest.mark.parametrize("url", ["ftp://host/folder", "file://folder"])
def test_what_is_no_sink_is_refused(url: str) -> None:
    with pytest.raises(BadInput, match=r"^out: "):
        open_sink(url, patience_s=0.0)


@pytest.mark.parametrize(
    ("error", "expected", "code"),
    [
        (StoreRetryable, SinkUnavailable, 6),
        (StoreUnusable, SinkUnavailable, 6),
        (StoreDenied, SinkUnavailable, 6),
        (StoreMissing, SinkError, 3),
        (StorePermanent, SinkError, 3),
    ],
)
def test_errors_keep_their_text_and_their_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: type[StoreError], expected: type[SinkError], code: int
) -> None:
    class Failing(MemorySink):
        def get(self, key: str) -> bytes:
            raise error("the store is away")

    monkeypatch.setattr(sinks, "open_store", lambda *url, **options: Failing())
    with pytest.raises(SinkError, match="the store is away") as caught:
        sinks.open_sink("s3://bucket/x", patience_s=0.0).get("a")
    assert type(caught.value) is expected and exit_code(caught.value) == code
