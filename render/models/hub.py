"""Models from the Hugging Face hub: the local cache first, the network only when the cache is incomplete."""

from __future__ import annotations

import contextlib
import errno
import importlib
import re
from collections.abc import Callable
from pathlib import Path

from render.errors import ModelNotUsable, first_line

ALLOW_PATTERNS = ("model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors")
_UNUSED = ("safety_checker/*", "feature_extractor/*", "image_encoder/*", "*.msgpack")
IGNORE_PATTERNS = ("*.*.safetensors", "*.fp16-*", "*.bf16-*", *_UNUSED)
"""Variants such as `model.fp16.safetensors` are left out, of which a repository may have several."""
VARIANTS = ("fp16", "bf16")
"""Fetched, in this order, from a repository that has nothing else."""

_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[A-Za-z0-9][\w./-]*))?")
_NOT_STORED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def looks_like_hub_id(name: str) -> bool:
    """`owner/name`, as the hub writes it, or `owner/name@revision`."""
    return _HUB_ID.fullmatch(name) is not None


def download(name: str, is_complete: Callable[[Path], bool]) -> Path:
    """Return the folder of a hub id; `is_complete` checks whether the cached folder can be used.

    Raises `ModelNotUsable` when it is neither in the cache nor available from the hub.
    """
    cached = _snapshot(name, local=True)
    if isinstance(cached, Path) and is_complete(cached):
        return cached
    fetched = _snapshot(name, local=False)
    for variant in VARIANTS:
        if isinstance(fetched, Path) and not is_complete(fetched):
            fetched = _snapshot(name, local=False, variant=variant)
    if isinstance(fetched, Path):
        return fetched
    if isinstance(cached, Path):  # read_model_info reports what is missing
        return cached
    raise ModelNotUsable("model", name, _reason(name, cached, fetched)) from fetched


def _reason(name: str, cached: Exception, fetched: Exception) -> str:
    """Why neither the cache nor the hub has a model, and what to do."""
    for exc in (cached, fetched):
        if isinstance(exc, OSError) and exc.errno in _NOT_STORED:
            return (
                f"cannot be read from or written to the hub cache ({exc.strerror}: {exc.filename}); "
                "set HF_HOME to a folder of this user with room for it, or give a folder"
            )
    kind = type(fetched).__name__
    if kind == "RevisionNotFoundError":
        return f"has no revision {name.partition('@')[2] or 'main'!r} on the hub; check the name after the @"
    if kind == "GatedRepoError":
        return "is gated on the hub; accept its terms there and set HF_TOKEN"
    if kind == "RepositoryNotFoundError":
        return "is not on the hub, or private; check the name, and set HF_TOKEN for a private one"
    return (
        "is neither a folder nor in the local cache, and the hub did not provide it "
        f"({first_line(fetched, 120)}); check the name and the network, or use builtin"
    )


def _snapshot(name: str, local: bool, variant: str | None = None) -> Path | Exception:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # OSError is the base of requests' errors and of the cache's errors (such as LocalEntryNotFoundError).
    expected: tuple[type[Exception], ...] = (OSError, ValueError, HfHubHTTPError, HFValidationError)
    # Versions of the hub's client use different HTTP libraries.
    for library in ("httpx2", "httpx"):
        with contextlib.suppress(ImportError):
            expected = (*expected, importlib.import_module(library).HTTPError)
    repo, _, revision = name.partition("@")
    ignored = IGNORE_PATTERNS if variant is None else _UNUSED
    allowed = ALLOW_PATTERNS if variant is None else (*ALLOW_PATTERNS[:-1], f"*/*.{variant}*.safetensors")
    try:
        folder = snapshot_download(
            repo,
            revision=revision or None,
            local_files_only=local,
            allow_patterns=list(allowed),
            ignore_patterns=list(ignored),
            etag_timeout=10.0,
        )
    except expected as exc:
        # A cache with other files than these, such as one variant, may be all that is needed.
        found = getattr(exc, "snapshot_path", None)
        return Path(found) if local and found else exc
    return Path(folder)
