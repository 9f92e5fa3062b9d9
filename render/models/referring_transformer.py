"""Transformers that look at pictures: their latents are tokens beside those of the window."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import Self

from torch import Tensor

from render.models.model_call import ModelCall
from render.models.transformer import TransformerAdapter, filled_up
from render.spec.reference import ReferencePicture


class ReferringTransformer(TransformerAdapter):
    """A transformer whose calls can look at reference pictures; see `TakesReferences`."""

    _references: Sequence[Tensor] = ()
    """Of a call: [B, C, h, w] latents of each picture."""

    def seeing(self, pictures: Sequence[ReferencePicture]) -> Self:
        """See `TakesReferences`. Most encode prompts without the pictures."""
        return self

    def referring(self, references: Sequence[Tensor]) -> Self:
        """See `TakesReferences`."""
        referrer = copy.copy(self)
        referrer._references = references
        return referrer

    def reference_size(self, width: int, height: int) -> tuple[int, int]:
        """See `TakesReferences`."""
        raise NotImplementedError

    def join_key(self, call: ModelCall) -> Hashable | None:
        """None for a call with pictures: each has sizes of its own."""
        return None if call.references else super().join_key(call)

    @property
    def _reference_latents(self) -> list[Tensor]:
        """Whole patches of each picture, as the network takes them."""
        return [filled_up(each, self.info.patch).to(self._device, self._dtype) for each in self._references]
