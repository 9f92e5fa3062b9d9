"""`chorale simulate`: when would it all be done, with other nodes, jobs or faults?"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from infra.settings import read_settings
from jobs.cli.help import examples
from jobs.cli.terminal import print_json, print_line, print_table
from jobs.farm import open_farm
from jobs.formatting import duration, percent, plural, thousands
from jobs.simulation.outcome import Outcome
from jobs.simulation.scenario import read_scenario
from jobs.simulation.setup import from_farm, from_scenario
from jobs.simulation.simulator import Simulator
from render.errors import BadInput


@click.command(
    epilog=examples(
        "chorale simulate examples/scenarios/night.yaml",
        "chorale simulate examples/scenarios/night.yaml --by 07:00 --json",
    )
)
@click.argument("scenario", type=click.Path(path_type=Path), required=False)
@click.option(
    "--add-nodes",
    type=click.IntRange(0, 10_000),
    default=0,
    show_default=True,
    help="Nodes to add to the farm, like its largest one.",
)
@click.option("--by", default=None, help="Say whether all is done by HH:MM (next) or an ISO date and time.")
@click.option("--database-url", default=None, help="URL of the farm's database. [CHORALE_DATABASE_URL]")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def simulate(
    scenario: Path | None, add_nodes: int, by: str | None, database_url: str | None, as_json: bool
) -> None:
    """Simulate a farm on a simulated clock, with the scheduler's own placement.

    Without SCENARIO, the farm's nodes and unfinished jobs are simulated with its measured rates. A SCENARIO
    is a YAML file of nodes, queues, jobs, seconds per evaluation and faults (see docs/OPERATIONS.md).
    """
    limit: datetime | None = None
    if scenario is not None:
        if add_nodes:
            raise BadInput(
                "add_nodes", add_nodes, "applies to a farm; change the nodes of the scenario instead"
            )
        read = read_scenario(scenario)
        simulator, limit = from_scenario(read), read.by
    else:
        with open_farm(read_settings({"database_url": database_url})) as farm, farm.database.read() as link:
            simulator = from_farm(link, add_nodes)
    if by is not None:
        limit = _moment(by, simulator.start)
    outcome = _run(simulator, quiet=as_json)
    _print(outcome, None if limit is None else limit.timestamp(), as_json)


def _run(simulator: Simulator, quiet: bool) -> Outcome:
    with tqdm(total=len(simulator.jobs), unit="job", disable=True if quiet else None, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.update(done - bar.n)

        return simulator.run(show)


def _moment(text: str, start: float) -> datetime:
    """`HH:MM`, the next one after the start, or an ISO date and time. Raises `BadInput`."""
    begins = datetime.fromtimestamp(start).astimezone()
    try:
        if len(text) == 5:
            clock = datetime.strptime(text, "%H:%M").time()
            moment = datetime.combine(begins.date(), clock).astimezone()
            return moment if moment > begins else (moment + timedelta(days=1)).astimezone()
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as exc:
        raise BadInput("by", text, "is not a time; use e.g. 07:00 or 2026-11-22T07:00+01:00") from exc


def _print(outcome: Outcome, limit: float | None, as_json: bool) -> None:
    on_time = None if limit is None else outcome.end is not None and outcome.end <= limit
    if as_json:
        document: dict[str, Any] = asdict(outcome) | {"lower_bound_s": outcome.lower_bound_s}
        for name in ("start", "end"):
            document[name] = None if document[name] is None else _iso(document[name])
        print_json(document | {"by": None if limit is None else _iso(limit), "on_time": on_time})
        return
    if outcome.end is None:
        left = outcome.jobs - outcome.done
        print_line(f"{plural(left, 'job')} of {thousands(outcome.jobs)} would not be done within 60 days")
    else:
        moment = f"{datetime.fromtimestamp(outcome.end).astimezone():%a %Y-%m-%d %H:%M}"
        print_line(f"{plural(outcome.jobs, 'job')} done at {moment}, after {duration(outcome.makespan_s)}")
    if limit is not None:
        print_line(f"By {datetime.fromtimestamp(limit).astimezone():%a %H:%M}: {'yes' if on_time else 'no'}")
    print_line(
        f"{plural(outcome.slots, 'slot')} busy {percent(outcome.busy_share)} of the time; "
        f"the work alone, spread over all of them, takes {duration(outcome.lower_bound_s)}"
    )
    if outcome.faults:
        print_line(
            f"{plural(outcome.faults, 'node failure')}, {outcome.lost_slot_s / 3600:.1f} slot hours lost"
        )
    rows = [
        (each.owner, each.jobs, *(duration(value) for value in (each.mean_s, each.median_s, each.worst_s)))
        for each in outcome.waits
    ]
    print_table("waiting", ("owner", "jobs", "mean", "median", "longest"), rows)
    print_line(
        f"Simulated in {outcome.simulated_in_s:.1f} s: {plural(outcome.events, 'event')}, "
        f"{plural(outcome.rounds, 'round')} of placement, the slowest {outcome.slowest_round_s:.3f} s"
    )


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().isoformat(timespec="seconds")
