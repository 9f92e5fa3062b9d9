"""`make chaos`: the long run of faults, and its table in bench/RESULTS.md."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from bench.table import as_markdown, count_table, write_section
from tests.support.chaos import NODES, Outcome, run_chaos

TITLE = "Chaos"


@click.command()
@click.option("--seed", default=1, show_default=True)
@click.option("--jobs", default=40, show_default=True)
@click.option("--faults", default=60, show_default=True)
@click.option("--steps", default=12, show_default=True, help="Of each job; more give faults more time.")
def main(seed: int, jobs: int, faults: int, steps: int) -> None:
    """Render a batch on three hosts under faults; exit 3 unless everything ends as it should."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        outcome = run_chaos(Path(folder), seed=seed, jobs=jobs, faults=faults, steps=steps, log=click.echo)
    text = _markdown(
        outcome, f'make chaos ARGS="--seed {seed} --jobs {jobs} --faults {faults} --steps {steps}"'
    )
    write_section(TITLE, text)
    click.echo(text)
    sys.exit(0 if outcome.holds else 3)


def _markdown(outcome: Outcome, command: str) -> str:
    rows = [
        ("jobs", outcome.jobs),
        ("jobs by state at the end", ", ".join(f"{n} {state}" for state, n in outcome.states.items())),
        ("roots that differ from one undisturbed rank's", len(outcome.wrong_roots)),
        ("manifests", outcome.manifests),
        ("processes left", len(outcome.left)),
        ("attempts", outcome.attempts),
        ("of them lost with a node or by an outage", outcome.losses),
        ("minutes", f"{outcome.seconds / 60:.1f}"),
        ("faults", sum(outcome.faults.values())),
        *((f"... {name}", count) for name, count in sorted(outcome.faults.items())),
    ]
    hosts = f"{NODES} hosts as network namespaces, PostgreSQL, Redis."
    return as_markdown(TITLE, command, [hosts, "", *count_table(rows)])


if __name__ == "__main__":
    main()
