"""How what holds a stage to the whole picture fades over its steps (DemoFusion, Du et al. 2024, section 3.2).

What a picture is comes from the whole, what it shows close up from its windows: so the share falls as a
raised cosine to the third power, from its strength at the stage's first step on. Pure numbers.
"""

from __future__ import annotations

import math
from typing import Protocol

_POWER = 3
_LEAST = 1e-3
"""A smaller share is none: it would cost its work for nothing."""


class Span(Protocol):
    """The steps of a stage: from `first_step` up to, and without, `steps`."""

    @property
    def first_step(self) -> int: ...

    @property
    def steps(self) -> int: ...


def raised_cosine(span: Span, step: int) -> float:
    """(1 + cos(pi * done)) / 2: 1 before the first step of the span, 0 after its last one."""
    done = (step - span.first_step) / (span.steps - span.first_step)
    return (1 + math.cos(math.pi * done)) / 2


def decayed_strength(strength: float, span: Span, step: int) -> float:
    """The share before a step; `strength` at the span's first one, then less, and 0 when it is too small."""
    share = strength * raised_cosine(span, step) ** _POWER
    return share if share >= _LEAST else 0.0
