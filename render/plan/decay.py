"""How the strength of global guidance decays over a stage (DemoFusion, Du et al. 2024, section 3.2).

The composition comes from the whole image and the detail from its windows. So the strength falls as a raised
cosine to the third power, from its full value at the stage's first step. Pure numbers, no torch.
"""

from __future__ import annotations

import math
from typing import Protocol

_POWER = 3
_THRESHOLD = 1e-3
"""A smaller strength counts as 0: it would cost work and change nothing."""


class Span(Protocol):
    """The steps of a stage: `first_step` up to, but not including, `steps`."""

    @property
    def first_step(self) -> int: ...

    @property
    def steps(self) -> int: ...


def raised_cosine(span: Span, step: int) -> float:
    """(1 + cos(pi * done)) / 2: 1 before the first step of the span, 0 after its last one."""
    done = (step - span.first_step) / (span.steps - span.first_step)
    return (1 + math.cos(math.pi * done)) / 2


def decayed_strength(strength: float, span: Span, step: int) -> float:
    """The strength at a step: `strength` at the span's first step, then less, and 0 below a threshold."""
    decayed = strength * raised_cosine(span, step) ** _POWER
    return decayed if decayed >= _THRESHOLD else 0.0
