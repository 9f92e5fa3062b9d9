"""What a spec names on this machine beside its models: for whoever renders it on another one."""

from __future__ import annotations

from collections.abc import Iterator

from render.spec.spec import Spec

_PARTS = ("lora", "embedding", "controlnet")
_FILES = ("enlarger", "ip_adapter")
_FOLDERS = ("vae", "base")


def named_pictures(spec: Spec) -> Iterator[tuple[str, str]]:
    """(field, path) of the pictures that it starts from or follows."""
    if spec.init is not None:
        yield "init", spec.init.path
    for control in spec.control:
        yield "control", control.path
    for reference in spec.reference:
        yield "reference", reference.path


def named_weights(spec: Spec) -> Iterator[tuple[str, str]]:
    """(field, path) of the files and folders with weights that go beside a model, or into it."""
    for field in _PARTS:
        for each in getattr(spec, field):
            yield field, each.path
    for field in _FILES:
        if (file := getattr(spec, field)) is not None:
            yield field, file.path
    for field in _FOLDERS:
        if (folder := getattr(spec, field)) is not None:
            yield field, folder
