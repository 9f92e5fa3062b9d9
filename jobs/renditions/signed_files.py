"""Whole images that are exported into files and signed: in the file, or beside it where it cannot be."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from infra.store.parts import part_of
from jobs.renditions.claim import claim_of
from jobs.renditions.signing import SIDECAR, Signer
from render.errors import BadInput
from render.output.encode import CONTENT_TYPES
from render.output.manifest import Manifest

_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".tif": "tiff", ".tiff": "tiff"}
_BESIDE = ("tiff",)
"""Exported TIFF files are pyramidal BigTIFF, which no claim can be put into."""


@dataclass(frozen=True, kw_only=True)
class FileSigning:
    """Signs the files of one exported image."""

    signer: Signer
    manifest: Manifest
    publish_prompt: bool
    sidecars: list[Path] = field(default_factory=list)
    """Those that were written."""

    def check(self, targets: Iterable[Path], force: bool) -> None:
        """Raise `BadInput` for a file beside a target that would be overwritten."""
        taken: dict[Path, Path] = {}
        for target in targets:
            if _format(target) in _BESIDE:
                sidecar = target.with_suffix(SIDECAR)
                if sidecar in taken:
                    fix = f"has the same {sidecar.name} as {taken[sidecar].name}; rename one"
                    raise BadInput("target", str(target), fix)
                if sidecar.exists() and not force:
                    raise BadInput("target", str(sidecar), "exists; use --force to replace it")
                taken[sidecar] = target

    def finish(self, unfinished: Path, target: Path) -> None:
        """Sign a file before it gets the name `target`. Raises as `Signer.sign_file` does."""
        format = _format(target)
        claim = claim_of(self.manifest, format=CONTENT_TYPES[format], publish_prompt=self.publish_prompt)
        embed = format not in _BESIDE
        claimed = self.signer.sign_file(unfinished, CONTENT_TYPES[format], claim, embed=embed)
        if not embed:
            sidecar = target.with_suffix(SIDECAR)
            part = part_of(sidecar)
            try:
                part.write_bytes(claimed)
                os.replace(part, sidecar)
            finally:
                part.unlink(missing_ok=True)
            self.sidecars.append(sidecar)


def _format(target: Path) -> str:
    return _FORMATS[target.suffix.lower()]
