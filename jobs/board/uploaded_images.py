"""Images that come with a request: kept in a folder of the request, and masks turned into those of a spec."""

from __future__ import annotations

import shutil
from pathlib import Path

from fastapi import UploadFile

from render.errors import BadInput
from render.spec.init_image import InitImage


def keep_image(upload: UploadFile, folder: Path, name: str) -> Path:
    """Write an uploaded file into a folder. Its name says nothing: the file is read by its content."""
    path = folder / name
    with path.open("wb") as file:
        shutil.copyfileobj(upload.file, file)
    return path


def keep_mask(upload: UploadFile, folder: Path) -> Path:
    """A mask that is transparent where to paint anew, as one of a spec: white there, black elsewhere.

    Raises `BadInput` for a file that is no image, and for one without transparency.
    """
    import pyvips

    sent = keep_image(upload, folder, "sent-mask")
    name = (upload.filename or "")[:200]
    try:
        transparent = InitImage.is_transparent(sent)
    except BadInput as exc:
        raise renamed(exc, "mask", sent, upload) from exc
    if not transparent:
        raise BadInput("mask", name, "has no transparency; make transparent what is to be painted anew")
    image = pyvips.Image.new_from_file(str(sent)).colourspace("srgb")
    path = folder / "mask.png"
    image[image.bands - 1].invert().cast("uchar").write_to_file(str(path))
    return path


def renamed(error: BadInput, field: str, path: Path, upload: UploadFile) -> BadInput:
    """What is wrong with a file of a request, by its own name, not by its place on this machine."""
    name = (upload.filename or "")[:200]
    return BadInput(field, name, error.fix.replace(str(path), name))
