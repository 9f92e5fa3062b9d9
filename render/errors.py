"""Every error that the engine raises on purpose.

    RenderError                the root: catch it and print its sentence
      BadInput                 the user can fix it: names the field, the value and the fix
        ModelNotUsable         a model folder that lacks parts, has pickles or is of an unknown family
      RenderFailed             the render could not be finished (out of memory, a file that has changed)
        NoImage                ... and never can be: what came out is no image (flat)
          NotFinite            ... since a network answered with NaN or infinities
        GroupFailed            a group of ranks ended without an image; carries the failing rank's exit code
          GroupLost            ... and no rank reported an error: killed, crashed or hung
            PeersLost          ... because the group's other nodes are gone
      SinkError                tiles or checkpoints cannot be read or written
        SinkUnavailable        ... because the store does not answer, or denies access
      RanksLost                other ranks of the group are gone
      GroupChanges             the group changes between two steps
      Dismissed                this rank is to leave its group
      RenderTimedOut           the render's time limit was exceeded
      Cancelled                the render was stopped on request
        Stopped                ... after a step, with a checkpoint

Each maps to one exit code of the command line, listed in `EXIT_CODES`.
"""

from __future__ import annotations

import reprlib


class RenderError(Exception):
    """Root of the engine's errors. Its text is one sentence for the user."""


class BadInput(RenderError):
    """A value that cannot be used; `field` names it, the text gives the value and the fix."""

    def __init__(self, field: str, value: object, fix: str) -> None:
        self.field, self.value, self.fix = field, value, fix
        super().__init__(_sentence(field, value, fix))


class ModelNotUsable(BadInput):
    """A model that is missing, incomplete, unsafe or of a family without an adapter."""


class RenderFailed(RenderError):
    """The render failed; nothing was published."""


class NoImage(RenderFailed):
    """What the spec gives is no image; the same spec gives the same bits wherever it is tried again."""


class NotFinite(NoImage):
    """A network answered with NaN or infinities."""


class GroupFailed(RenderFailed):
    """A group of ranks ended without an image.

    `code` is the exit code of the rank that failed first. `outage` is set when a store or a service is
    unavailable, which is no fault of the job. `bad_input` is set where a rank refused a value, `permanent`
    where every other try would end the same (`NoImage`).
    """

    def __init__(
        self,
        text: str,
        code: int = 3,
        *,
        outage: bool = False,
        bad_input: BadInput | None = None,
        permanent: bool = False,
    ) -> None:
        super().__init__(text)
        self.code, self.outage, self.bad_input = code, outage, bad_input
        self.permanent = permanent or bad_input is not None


class GroupLost(GroupFailed):
    """A group ended or hung, and none of its ranks reported an error; another node may know the reason."""


class PeersLost(GroupLost):
    """The other nodes of a group are gone or never joined; this node is healthy."""

    def __init__(self, text: str) -> None:
        super().__init__(text, 6)


class SinkError(RenderError):
    """The sink could not read or write a file."""


class SinkUnavailable(SinkError):
    """The sink's store does not answer, or denies access."""


class RenderTimedOut(RenderError):
    """The render's time limit was exceeded; nothing was published."""


class RanksLost(RenderError):
    """Other ranks of the group are gone in the middle of a render."""


class GroupChanges(RenderError):
    """The group changes between two steps; all ranks raise it and go on in the next epoch."""


class Dismissed(RenderError):
    """This rank is not part of its group any more, as it was told; the others go on."""


class Cancelled(RenderError):
    """The render was stopped on request; nothing was published."""


class Stopped(Cancelled):
    """The ranks stopped after a step on request and saved a checkpoint."""


EXIT_CODES: dict[type[RenderError], int] = {
    BadInput: 2,
    RenderFailed: 3,
    Cancelled: 4,
    RenderTimedOut: 5,
    SinkUnavailable: 6,
}


def exit_code(error: RenderError) -> int:
    """The documented exit code: a failed group's own, else that of the nearest base class in `EXIT_CODES`."""
    if isinstance(error, GroupFailed):
        return error.code
    for base in type(error).__mro__:
        if base in EXIT_CODES:
            return EXIT_CODES[base]
    return 3


def first_line(exc: BaseException, most: int | None = 160) -> str:
    """The first line of an error's text, at most so many characters; the error's type if it has no text."""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:most]


def _sentence(field: str, value: object, fix: str) -> str:
    """`width: 7 is not a multiple of 8; use 8`, or `prompt: missing; give one` for a value that is None."""
    return f"{field}: {fix.removeprefix('is ')}" if value is None else f"{field}: {_short(value)} {fix}"


def _short(value: object, limit: int = 80) -> str:
    try:
        text = _REPR.repr(value)
        # Half a surrogate pair, of an argument that is no UTF-8, has no bytes: no terminal takes it.
        text = text.encode(errors="backslashreplace").decode()
    except (ValueError, RecursionError):
        # A number of thousands of digits, or lists nested too deeply.
        return f"this {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _bounded_repr() -> reprlib.Repr:
    """Writes the beginning of a value: lists may hold each other, and be far longer written than they are."""
    found = reprlib.Repr()
    found.maxlevel = 4
    found.maxlist = found.maxtuple = found.maxdict = found.maxset = found.maxfrozenset = found.maxdeque = 20
    found.maxstring = found.maxlong = found.maxother = 200
    return found


_REPR = _bounded_repr()
