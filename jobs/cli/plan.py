"""`chorale plan`: the plan of a render, without rendering."""

from __future__ import annotations

from typing import Any

import click

from jobs.cli.group_options import whole
from jobs.cli.help import examples
from jobs.cli.spec_options import spec_options, take_spec
from jobs.cli.terminal import print_json, print_line, print_table
from jobs.formatting import plural, size
from jobs.ranks import MAX_RANKS
from render.models.weight_memory import text_encoder_bytes, weight_bytes
from render.plan.plan import Plan, StagePlan, make_plan


@click.command(epilog=examples('chorale plan "a red vase" --size 4096x4096 --ranks 8'))
@spec_options
@click.option("--ranks", default="1", show_default=True, help="Number of ranks, 1 to 1024.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def plan(ranks: str, as_json: bool, **options: Any) -> None:
    """Print the stages, windows, model calls and memory of a render, without rendering.

    Bytes per step are what a rank sends to its neighbours in one denoising step.
    """
    spec, paths, info = take_spec(options)
    weights = weight_bytes(paths, spec.dtype, spec.quantize)
    texts = text_encoder_bytes(paths, spec.dtype, spec.quantize)
    made = make_plan(spec, info, whole("ranks", ranks, 1, MAX_RANKS))
    if as_json:
        print_json(_document(made) | {"weight_bytes": weights, "text_encoder_bytes": texts})
        return
    columns = ("stage", "size", "steps", "windows", "calls/step/rank", "bytes/step/rank", "memory/rank")
    ranks = plural(made.world_size, "rank")
    print_table(f"{made.spec.width}x{made.spec.height} on {ranks}", columns, map(_row, made.stages))
    print_line(
        f"{plural(made.model_calls, 'model call')} on the busiest rank; "
        f"at most {plural(made.useful_ranks, 'rank')} can be used"
    )
    print_line(
        f"the weights take {size(weights - texts)} of each rank's memory besides, "
        f"the text encoders {size(texts)} of one rank's on each node"
    )
    if made.decode.layered:
        window = made.decode.attention_window
        seen = "the whole image" if window is None else f"a window of {window} px"
        print_line(f"decoded exactly, layer by layer over all ranks; the decoder's attention sees {seen}")


def _document(made: Plan) -> dict[str, Any]:
    return {
        "ranks": made.world_size,
        "useful_ranks": made.useful_ranks,
        "model_calls": made.model_calls,
        "attention_window": made.decode.attention_window,
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


def _row(stage: StagePlan) -> tuple[str, ...]:
    return (
        str(stage.stage.index + 1),
        f"{stage.width}x{stage.height}",
        str(stage.steps),
        str(stage.windows),
        _calls(stage),
        _range(stage.border_bytes),
        size(max(stage.memory_bytes)),
    )


def _calls(stage: StagePlan) -> str:
    """Calls for windows, and for dilated views if there are any."""
    views = f" + {_range(stage.view_calls)}" if stage.view_steps else ""
    return _range(stage.calls_per_step) + views


def _range(values: tuple[int, ...]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
