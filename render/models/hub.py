"""Models from the Hugging Face hub: the local cache first, the network only when the cache is incomplete."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable
from pathlib import Path

from render.errors import ModelNotUsable

ALLOW_PATTERNS = ("model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors")
IGNORE_PATTERNS = (
    "*.*.safetensors",
    "safety_checker/*",
    "feature_extractor/*",
    "image_encoder/*",
    "*.msgpack",
)
"""The first excludes variants such as `model.fp16.safetensors`, of which a folder may have several."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def looks_like_hub_id(name: str) -> bool:
    """`owner/name`, as the hub writes it."""
    return _HUB_ID.fullmatch(name) is not None


def download(name: str, is_complete: Callable[[Path], bool]) -> Path:
    """Return the folder of a hub id; `is_complete` checks whether the cached folder can be used.

    Raises `ModelNotUsable` when it is neither in the cache nor available from the hub.
    """
    cached = _snapshot(name, local=True)
    if isinstance(cached, Path) and is_complete(cached):
        return cached
    fetched = _snapshot(name, local=False)
    if isinstance(fetched, Path):
        return fetched
    if isinstance(cached, Path):  # read_model_info reports what is missing
        return cached
    reason = str(fetched).strip().splitlines() or [type(fetched).__name__]
    raise ModelNotUsable(
        "model",
        name,
        f"is neither a folder nor in the local cache, and the hub did not provide it ({reason[0][:120]});"
        " check the name and the network, or use builtin",
    ) from fetched


def _snapshot(name: str, local: bool) -> Path | Exception:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # OSError is the base of requests' errors and of the cache's errors (such as LocalEntryNotFoundError).
    expected: tuple[type[Exception], ...] = (OSError, ValueError, HfHubHTTPError, HFValidationError)
    # Versions of the hub's client use different HTTP libraries.
    for library in ("httpx2", "httpx"):
        with contextlib.suppress(ImportError):
            expected = (*expected, importlib.import_module(library).HTTPError)
    try:
        folder = snapshot_download(
            name,
            local_files_only=local,
            allow_patterns=list(ALLOW_PATTERNS),
            ignore_patterns=list(IGNORE_PATTERNS),
            etag_timeout=10.0,
        )
    except expected as exc:
        return exc
    return Path(folder)
