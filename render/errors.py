"""Every error that the engine raises on purpose.

    RenderError                the root: catch it and print its sentence
      BadInput                 the user can mend it: names the field, the value and the fix
        ModelNotUsable         a model folder that lacks parts, holds pickles or is of an unknown family
      RenderFailed             the render could not be finished (NaN, a flat picture, a full disk)
      RanksLost                other ranks of the group have gone away
      Cancelled                somebody asked for the end
        Stopped                ... at the next step, with a checkpoint

Each maps to one exit code of the command line, named in `EXIT_CODES`.
"""

from __future__ import annotations


class RenderError(Exception):
    """Root of the engine's errors. Its text is one sentence for a person."""


class BadInput(RenderError):
    """A value that cannot be used; `field` names it, the text says the value and the fix."""

    def __init__(self, field: str, value: object, fix: str) -> None:
        self.field, self.value, self.fix = field, value, fix
        super().__init__(f"{field}: {_short(value)} {fix}")


class ModelNotUsable(BadInput):
    """A model that is missing, incomplete, unsafe or of a family without an adapter."""


class RenderFailed(RenderError):
    """The render broke off; nothing was published."""


class RanksLost(RenderError):
    """Other ranks of the group have gone away in the middle of a render."""


class Cancelled(RenderError):
    """The render was stopped on request; nothing was published."""


class Stopped(Cancelled):
    """The ranks stopped after a step on request, and kept a checkpoint to go on from."""


EXIT_CODES: dict[type[RenderError], int] = {BadInput: 2, RenderFailed: 3, Cancelled: 4}


def exit_code(error: RenderError) -> int:
    """The documented exit code of an error: that of its nearest ancestor in `EXIT_CODES`, else 3."""
    for ancestor in type(error).__mro__:
        if ancestor in EXIT_CODES:
            return EXIT_CODES[ancestor]
    return 3


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
