"""A Celery worker that dies with its agent: `python -m jobs.node.celery_worker PARENT_PID ARGUMENTS...`."""

from __future__ import annotations

import sys

from celery.__main__ import main as celery

from infra.logging import configure_logging
from render.launch.parent_death import die_with_parent


def main() -> None:
    """Tie this process to its agent, then be Celery."""
    die_with_parent(int(sys.argv[1]))
    configure_logging()
    sys.argv[:2] = ["celery"]
    celery()


if __name__ == "__main__":
    main()
