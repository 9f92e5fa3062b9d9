"""`make bench`: measures side by side and writes bench/RESULTS.md. Ratios, since machines differ.

make bench ARGS="speed memory" runs some sections only.
"""

from __future__ import annotations

import click

from bench import (
    autoencoders,
    board,
    catalog,
    coherence,
    elastic,
    enlarger,
    exchange,
    families,
    farm,
    image,
    intake,
    launches,
    metrics,
    panorama,
    seams,
    simulated,
    starts,
    store,
)
from bench.table import as_markdown, write_section

SECTIONS = {
    "speed": ("Engine", image.speed_rows),
    "placement": ("Placement changes nothing", image.placement_rows),
    "panorama": ("Against StableDiffusionPanoramaPipeline", panorama.rows),
    "seams": ("Seams", seams.rows),
    "coherence": ("Global context", coherence.rows),
    "repainting": ("Global context, at a strength of 0.8", coherence.repainting_rows),
    "enlarger": ("Enlarger: time", enlarger.rows),
    "memory": ("Memory", image.memory_rows),
    "autoencoders": ("Autoencoders", autoencoders.lines),
    "families": ("Families", families.lines),
    "farm": ("Farm", farm.rows),
    "catalog": ("Catalog", catalog.rows),
    "catalog-512": ("Catalog of 512x512 images", catalog.larger_rows),
    "starts": ("Starts", starts.rows),
    "elastic": ("Groups that lose and gain ranks", elastic.rows),
    "exchange": ("What crosses the network", exchange.lines),
    "launches": ("Launches", launches.rows),
    "intake": ("Intake", intake.rows),
    "simulated": ("Simulated nights", simulated.rows),
    "metrics": ("Metrics", metrics.rows),
    "store": ("Object store: requests", store.request_rows),
    "uploads": ("Object store: uploads beside a render", store.upload_rows),
    "faults": ("Object store: faults", store.fault_lines),
    "board": ("Board", board.rows),
    "large": ("Large pictures", image.large_rows),
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(SECTIONS)))
def main(names: tuple[str, ...]) -> None:
    """Run the named sections, or all of them."""
    for name in names or tuple(SECTIONS):
        title, measure = SECTIONS[name]
        click.echo(f"measuring: {title} ...", err=True)
        text = as_markdown(title, f'make bench ARGS="{name}"', measure())
        write_section(title, text)
        click.echo(text)


if __name__ == "__main__":
    main()
