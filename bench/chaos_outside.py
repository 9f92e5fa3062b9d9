"""`make chaos-outside`: the fault list and the findings of outside tests, as one program and one table.

A farm of three hosts renders while each fault strikes: the faults of `make chaos`, and those that outside
tests found something with (a database that only reads, one that stands still, a node's row or home deleted).
Beside it, one image is published through each fault of the network between a node and S3.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from bench.table import as_markdown, count_table, write_section
from jobs.db.state_machine import ENDED
from tests.support.buckets import credentials, moto_server
from tests.support.chaos import NODES, Outcome, fault_methods, run_chaos, shown
from tests.support.fault_table import FAULTS, try_fault
from tests.support.fault_table import Outcome as StoreOutcome

TITLE = "Chaos from outside"
_KINDS = ("fault_", "finding_")


@click.command()
@click.option("--seed", default=1, show_default=True)
@click.option("--jobs", default=40, show_default=True)
@click.option("--rounds", default=2, show_default=True, help="How often each fault of the farm strikes.")
@click.option("--steps", default=12, show_default=True, help="Of each job; more give faults more time.")
def main(seed: int, jobs: int, rounds: int, steps: int) -> None:
    """Strike with every fault, and write the table; exit 3 unless everything ends as it should."""
    faults = rounds * len(fault_methods(_KINDS))
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        farm = run_chaos(
            Path(folder),
            seed=seed,
            jobs=jobs,
            faults=faults,
            steps=steps,
            log=click.echo,
            findings=True,
        )
    with moto_server() as bucket, credentials(bucket):
        store = [try_fault(bucket, name) for name in FAULTS]
    text = _markdown(
        farm,
        store,
        f'make chaos-outside ARGS="--seed {seed} --jobs {jobs} --rounds {rounds} --steps {steps}"',
    )
    write_section(TITLE, text)
    click.echo(text)
    sys.exit(0 if farm.holds and all(each.holds for each in store) else 3)


def _markdown(farm: Outcome, store: list[StoreOutcome], command: str) -> str:
    ended = sum(count for state, count in farm.states.items() if state in ENDED)
    wrong = len(farm.wrong_roots) + sum(not each.same_root for each in store)
    rows: list[tuple[str, object]] = [
        ("jobs of the farm, and images through a store's fault", f"{farm.jobs} and {len(store)}"),
        ("jobs lost: failed, cancelled or without an image", ended - farm.states["done"]),
        ("jobs or files doubled", farm.doubled + sum(each.doubled for each in store)),
        ("roots that differ from one undisturbed rank's", wrong),
        ("jobs or renders stuck", farm.jobs - ended + sum(not each.done for each in store)),
        ("processes left", len(farm.left)),
        ("files missing in the store", sum(each.lost for each in store)),
        ("attempts; of them lost with a node or by an outage", f"{farm.attempts}; {farm.losses}"),
        ("minutes of the farm", f"{farm.seconds / 60:.1f}"),
    ]
    for method in fault_methods(_KINDS):
        rows.append((f"... {shown(method)}", farm.faults[shown(method)] or "has not struck"))
    rows += [(f"... store: {each.fault}", 1) for each in store]
    hosts = f"{NODES} hosts as network namespaces, PostgreSQL, Redis; moto as S3."
    return as_markdown(TITLE, command, [hosts, "", *count_table(rows)])


if __name__ == "__main__":
    main()
