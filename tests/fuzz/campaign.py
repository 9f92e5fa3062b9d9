"""A campaign: many inputs made from a seed, each given to the program, which may take or refuse it.

Input number n of a campaign depends on the campaign's name and on n alone, so the short form that `make test`
runs is the beginning of the long form, and a failure is repeated by its number.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from types import FrameType
from typing import Any, TypeVar

Case = TypeVar("Case")
CASES = "CHORALE_FUZZ_CASES"
"""Environment variable: cases of every campaign, in place of its own number."""
HANG_S = 120
"""Seconds after which a case counts as hung; far above what any takes, even on a loaded machine."""
_SHOWN = 5


class Hung(BaseException):
    """A case did not end. Not an `Exception`, so that no handler of the program takes it for its own."""


@dataclass(kw_only=True)
class Result:
    """What came of a campaign."""

    name: str
    cases: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    slowest_s: float = 0.0
    failures: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Fail the test if any case failed, and show the first ones."""
        shown = "\n\n".join(self.failures[:_SHOWN])
        assert not self.failures, f"{self.name}: {len(self.failures)} of {self.cases} failed\n\n{shown}"
        assert len(self.outcomes) > 1, f"{self.name}: all cases had one outcome, {self.outcomes}: no search"


def run(name: str, cases: int, make: Callable[[Random], Case], judge: Callable[[Case], str]) -> Result:
    """Make `cases` inputs and judge each: `judge` returns the outcome in a word and raises for a failure."""
    result = Result(name=name)
    for number in range(int(os.environ.get(CASES, cases))):
        random = Random(f"{name}/{number}")
        case: Any = "(not made)"
        started = time.monotonic()
        try:
            case = make(random)
            with _limited():
                outcome = judge(case)
        except (Exception, Hung, SystemExit) as exc:
            outcome = "failed"
            result.failures.append(f"case {number}: {_short(case)}\n{_trace(exc)}")
        result.cases += 1
        result.outcomes[outcome] = result.outcomes.get(outcome, 0) + 1
        result.slowest_s = max(result.slowest_s, time.monotonic() - started)
    return result


@contextmanager
def _limited() -> Iterator[None]:
    def hung(number: int, frame: FrameType | None) -> None:
        raise Hung(f"not ended after {HANG_S} s")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(HANG_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _short(case: Any) -> str:
    try:
        return repr(case)[:2000].encode(errors="backslashreplace").decode()
    except (ValueError, RecursionError):
        return f"(a {type(case).__name__} without a text)"


def _trace(exc: BaseException) -> str:
    lines = traceback.format_exception(exc)
    return "".join(lines)[-2500:].encode(errors="backslashreplace").decode()
