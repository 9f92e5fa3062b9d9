"""Reference pictures of a model call: what an adapter offers that looks at pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from render.models.adapter import Adapter
from render.spec.reference import ReferencePicture


class EncodesPrompts(Protocol):
    """What encodes prompts."""

    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Any:
        """See `Adapter.encode_prompt`."""
        ...


@runtime_checkable
class SeesReferences(Protocol):
    """An adapter that can look at reference pictures."""

    def seeing(self, pictures: Sequence[ReferencePicture]) -> EncodesPrompts:
        """What encodes prompts about these pictures; the adapter stays as it is."""
        ...


@runtime_checkable
class TakesReferences(SeesReferences, Protocol):
    """An adapter whose calls take the latents of reference pictures, too."""

    def referring(self, references: Sequence[Tensor]) -> Adapter:
        """An adapter of the same networks whose calls look at these [B, C, h, w] latents."""
        ...

    def reference_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels at which it looks at a whole picture of this size."""
        ...


def seeing(adapter: Adapter, pictures: Sequence[ReferencePicture]) -> EncodesPrompts:
    """What encodes prompts about these pictures: the adapter itself where there are none."""
    if not pictures:
        return adapter
    assert isinstance(adapter, SeesReferences), "the plan refuses pictures for other models"
    return adapter.seeing(pictures)


def referring(adapter: Adapter, references: Sequence[Tensor]) -> Adapter:
    """The adapter of a call that looks at these latents; the same one where there are none."""
    if not references:
        return adapter
    assert isinstance(adapter, TakesReferences), "the plan refuses pictures for other models"
    return adapter.referring(references)
