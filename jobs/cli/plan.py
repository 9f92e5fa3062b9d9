"""`chorale plan`: what a render would do."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from jobs.cli.group_options import whole
from jobs.cli.spec_options import spec_options, take_spec
from jobs.db.submission import MAX_RANKS
from render.plan.plan import Plan, StagePlan, make_plan


@click.command(epilog='Example: chorale plan "a red vase" --size 4096x4096 --ranks 8')
@spec_options
@click.option("--ranks", default="1", show_default=True, help="Ranks of the group, 1 to 1024.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def plan(ranks: str, as_json: bool, **options: Any) -> None:
    """Print stages, windows, model calls, bytes per step and memory per rank. Renders nothing."""
    spec, _, info = take_spec(options)
    made = make_plan(spec, info, whole("ranks", ranks, 1, MAX_RANKS))
    if as_json:
        click.echo(json.dumps(_document(made)))
        return
    Console().print(_table(made))
    click.echo(
        f"{made.model_calls} model calls on the busiest rank; at most {made.useful_ranks} ranks are of use"
    )


def _document(made: Plan) -> dict[str, Any]:
    return {
        "ranks": made.world_size,
        "useful_ranks": made.useful_ranks,
        "model_calls": made.model_calls,
        "stages": [
            {
                "width": stage.width,
                "height": stage.height,
                "steps": stage.steps,
                "windows": stage.windows,
                "passes": stage.stage.passes,
                "call_batch": stage.stage.batch,
                "evaluations_per_rank": stage.evaluations_per_rank,
                "calls_per_step": stage.calls_per_step,
                "view_calls": stage.view_calls,
                "view_steps": stage.view_steps,
                "border_bytes": stage.border_bytes,
                "token_bytes": stage.token_bytes,
                "view_bytes": stage.view_bytes,
                "memory_bytes": stage.memory_bytes,
            }
            for stage in made.stages
        ],
    }


def _table(made: Plan) -> Table:
    table = Table(title=f"{made.spec.width}x{made.spec.height} on {made.world_size} ranks")
    shares = ("calls / step / rank", "bytes / step / rank", "memory / rank")
    for name in ("stage", "size", "steps", "windows", *shares):
        table.add_column(name, justify="right")
    for stage in made.stages:
        table.add_row(
            str(stage.stage.index + 1),
            f"{stage.width}x{stage.height}",
            str(stage.steps),
            str(stage.windows),
            _calls(stage),
            _range(stage.border_bytes),
            f"{max(stage.memory_bytes) / 2**20:.1f} MiB",
        )
    return table


def _calls(stage: StagePlan) -> str:
    """Of windows, and of dilated views where there are any."""
    views = f" + {_range(stage.view_calls)}" if stage.view_steps else ""
    return _range(stage.calls_per_step) + views


def _range(values: tuple[int, ...]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
