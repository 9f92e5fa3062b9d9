"""Errors of the farm and of the command line, and the exit code of every error that users can see.

Codes: 0 done, 2 bad input, 3 failed, 4 cancelled, 5 timed out, 6 a service unreachable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.errors import ServiceError, SettingError, StoreDenied, StoreError, StoreRetryable, StoreUnusable
from render.errors import RenderError
from render.errors import exit_code as render_exit_code

BAD_INPUT, FAILED, CANCELLED, TIMED_OUT, UNREACHABLE = 2, 3, 4, 5, 6


class JobError(Exception):
    """Root of the farm's errors. The message is one plain sentence; `code` is the exit code."""

    code = FAILED


class JobFailed(JobError):
    """Jobs that were waited for have failed."""


class JobCancelled(JobError):
    """The job was cancelled."""

    code = CANCELLED


class IllegalChange(JobError):
    """The job's state does not allow the requested change."""


class LostRace(JobError):
    """The job was changed by someone else first; read it again."""


class UnknownJob(JobError):
    """No job has this id."""

    code = BAD_INPUT


class Refused(JobError):
    """A farm that is used over REST has refused a request; `details` is all of its answer, with `status`."""

    code = BAD_INPUT

    def __init__(self, text: str, details: Mapping[str, Any], status: int = 400) -> None:
        super().__init__(text)
        self.details, self.status = details, status


class BoardUnreachable(ServiceError):
    """The board of a farm that is used over REST does not answer."""


class JobTimedOut(JobError):
    """The time limit was exceeded."""

    code = TIMED_OUT


KNOWN = (JobError, RenderError, StoreError, SettingError, ServiceError)
"""Errors that the command line prints as one sentence; anything else is a bug and shows its traceback."""


def exit_code(error: BaseException) -> int:
    """The documented exit code of one of the `KNOWN` errors."""
    if isinstance(error, JobError):
        return error.code
    if isinstance(error, RenderError):
        return render_exit_code(error)
    if isinstance(error, SettingError):
        return BAD_INPUT
    away = (StoreRetryable, StoreUnusable, StoreDenied, ServiceError)
    return UNREACHABLE if isinstance(error, away) else FAILED
