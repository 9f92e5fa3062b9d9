"""What queued jobs wait for beside slots: other jobs, and budgets."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection

from jobs.db.budgets import held_jobs
from jobs.db.dependencies import waits_for


def what_jobs_wait_for(connection: Connection, ids: Collection[str]) -> dict[str, str]:
    """Of these jobs: those that wait, each with what it waits for."""
    return held_jobs(connection, ids) | waits_for(connection, ids)
