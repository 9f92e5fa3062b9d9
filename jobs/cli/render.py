"""`chorale render`: one image, here and now."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import click

from infra.settings import read_settings
from infra.store.base import Store
from infra.store.local import LocalStore
from infra.store.open import open_store
from jobs.cli.group_options import (
    FinishedWithout,
    Joining,
    await_manifest,
    group_options,
    resolve_host,
    take_rendezvous,
)
from jobs.cli.help import examples
from jobs.cli.progress import RenderProgress
from jobs.cli.spec_options import spec_options, take_spec
from jobs.cli.terminal import print_json, print_line
from jobs.errors import BAD_INPUT
from jobs.image_store import claim, discard_other_numerics, disclaim, finished_image, published_image
from jobs.node.shutdown_signals import ShutdownSignals
from jobs.numerics import local_numerics
from jobs.ranks import parse_ranks
from jobs.text_encoder import CHOICES, resolve_text_encoder
from render.errors import BadInput, GroupFailed
from render.events import Event, ImageDone, OnEvent, ignore_event
from render.launch.gpus import processors
from render.launch.rank_group import HUNG_S, RankGroup
from render.launch.rendezvous_config import Rendezvous
from render.launch.request import CHECKPOINT_S, Request
from render.model_info import ModelInfo
from render.models.model_paths import ModelPaths
from render.models.prompt_limits import dropped_prompts, weights_note
from render.output.manifest import KEY, Manifest
from render.plan.plan import make_plan
from render.spec import Spec

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".avif", ".heic", ".psd")


@click.command(
    epilog=examples(
        'chorale render "a red vase on a wooden table" --size 1536x1024 --seed 7 --steps 20 --ranks 2 '
        "--out out/vase"
    )
)
@spec_options
@click.option("--ranks", default="auto", show_default=True, help="Ranks on this machine, or auto.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--text-encoder",
    type=click.Choice(CHOICES),
    default=None,
    help="Where the text encoders are between two prompts: gpu, the device that renders; cpu, where they "
    "compute too; free, nowhere; auto, gpu where all weights fit, else cpu. [CHORALE_TEXT_ENCODER, or auto]",
)
@click.option("--out", required=False, help="Folder or s3://bucket/prefix. [out/DIGEST]")
@click.option(
    "--timeout", type=float, default=None, help="Seconds after which the render is given up (exit 5)."
)
@click.option(
    "--checkpoint-every",
    type=click.FloatRange(min=0),
    default=CHECKPOINT_S,
    show_default=True,
    help="Seconds between checkpoints; the same command resumes from the last one.",
)
@click.option(
    "--stall",
    type=click.FloatRange(min=1),
    default=HUNG_S,
    show_default=True,
    help="Seconds without an event of any rank after which the group is taken to hang (exit 3).",
)
@group_options
@click.option("--dry-run", is_flag=True, help="Check everything, print the digest, render nothing.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON on stdout.")
def render(
    ranks: str,
    device: str,
    text_encoder: str | None,
    out: str | None,
    timeout: float | None,
    checkpoint_every: float,
    stall: float,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Render one image with a group of ranks and write its tile pyramid.

    The same spec gives the same bits, whatever the number of ranks. A finished image is not rendered again.
    SIGTERM lets the ranks save a checkpoint after their step (exit 4). Several machines render one image
    together with --nnodes; when one goes away, the others go on without it. When the first one does, the
    others end (exit 6), and all can start again.
    """
    spec, folders, info = take_spec(options, device)
    result = render_here(
        spec,
        folders,
        info,
        rendezvous=take_rendezvous(options),
        ranks=ranks,
        device=device,
        text_encoder=text_encoder,
        out=out,
        timeout=timeout,
        checkpoint_every=checkpoint_every,
        stall=stall,
        dry_run=dry_run,
        quiet=as_json,
    )
    _finish(result, as_json)


def render_here(
    spec: Spec,
    folders: ModelPaths,
    info: ModelInfo,
    *,
    ranks: str,
    device: str,
    out: str | None,
    rendezvous: Rendezvous | None = None,
    text_encoder: str | None = None,
    timeout: float | None = None,
    checkpoint_every: float = CHECKPOINT_S,
    stall: float = HUNG_S,
    dry_run: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Render a spec with a group of ranks on this machine, as `chorale render` does with these options.

    Returns what it prints: `digest`, `root`, `manifest` (its URL), `seconds`, `ranks`, and `already` for an
    image that was there. Raises `BadInput`, `GroupFailed`, and the errors of the store.
    """
    wanted = parse_ranks(ranks) or processors()
    plan = make_plan(spec, info, 1)
    if rendezvous is not None:
        _check_room(wanted * rendezvous.nodes, plan.useful_ranks)
    elif wanted > plan.useful_ranks:
        print_line(
            f"chorale: only {plan.useful_ranks} of {wanted} ranks have anything to evaluate; using those",
            error=True,
        )
        wanted = plan.useful_ranks
    notes = [str(each) for each in dropped_prompts(folders.model, spec.prompts)]
    notes += filter(None, [weights_note(folders.model, spec.prompts.values())])
    for note in notes:
        print_line(f"chorale: {note}", error=True)
    _check_device(device)
    text_encoder = resolve_text_encoder(text_encoder, folders, spec, device)
    digest = spec.digest(info.digest)
    settings = read_settings({})
    patience_s = settings.store_patience_s
    place = _folder(out) or str(Path("out") / digest[:16])
    # Without retries: a misconfigured store should fail at once, not after minutes.
    target = open_store(place, settings, field="out")
    _check_folder(target)
    done = finished_image(target, digest)
    if dry_run:
        return {"digest": digest, "ranks": wanted, "out": target.url(), "dry_run": True, "notes": notes}
    if done is not None:
        return _result(target, done, done.timings.get("total", 0.0), already=True)
    request = Request(
        spec=spec.to_dict(),
        folders=folders,
        info=info,
        device=device,
        out=target.url(),
        text_encoder=text_encoder,
        checkpoint_s=checkpoint_every,
        patience_s=patience_s,
    )
    progress: AbstractContextManager[OnEvent] = nullcontext(ignore_event) if quiet else RenderProgress()
    numerics = local_numerics(device, text_encoder)
    if discard_other_numerics(target, numerics):
        print_line(
            f"chorale: {target.url()} held unfinished work of another version or device; starting over",
            error=True,
        )
    with progress as on_event:
        claim(target, digest, spec.canonical_json(info.digest), numerics)
        try:
            finished = partial(finished_image, target, digest)
            image = _render(request, wanted, rendezvous, stall, timeout, on_event, finished)
        except GroupFailed as exc:
            if exc.code == BAD_INPUT:
                disclaim(target)
            raise
    patient = open_store(place, settings, patience_s=patience_s)
    if image is None:
        manifest = await_manifest(lambda: finished_image(patient, digest))
        return _result(patient, manifest, manifest.timings.get("total", 0.0))
    return _result(patient, published_image(patient), image.seconds)


def _render(
    request: Request,
    ranks: int,
    rendezvous: Rendezvous | None,
    stall: float,
    timeout: float | None,
    on_event: OnEvent,
    finished: Callable[[], Manifest | None],
) -> ImageDone | None:
    """The group's last event; None on a machine that is not the first one, also when `finished` tells that
    the others have made the image before this one has joined them."""
    signals = ShutdownSignals()
    joining = Joining(finished if rendezvous is not None and not rendezvous.holds_first else lambda: None)

    def forward(event: Event) -> None:
        joining.over = True
        signals.on_event(event)
        on_event(event)

    def poll() -> bool:
        joining.look()
        return signals.poll()

    with signals.installed(), suppress(FinishedWithout):
        if rendezvous is not None:
            rendezvous = resolve_host(rendezvous, poll)
        group = RankGroup(ranks, rendezvous=rendezvous, hung_s=stall)
        try:
            return group.render(request, forward, timeout=timeout, on_tick=poll)
        finally:
            group.close()
    return None


def _result(target: Store, manifest: Manifest, seconds: float, already: bool = False) -> dict[str, Any]:
    return {
        "digest": manifest.digest,
        "root": manifest.root,
        "manifest": target.url(KEY),
        "seconds": seconds,
        "width": manifest.width,
        "height": manifest.height,
        "ranks": manifest.ranks,
        "already": already,
    }


def _finish(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result)
    elif result.get("dry_run"):
        print_line(
            f"All is well. Digest {result['digest'][:16]}, {result['ranks']} ranks, into {result['out']}"
        )
    else:
        verb = "was done already" if result["already"] else f"done in {result['seconds']:.1f} s"
        print_line(
            f"{result['width']}x{result['height']} {verb}: {result['manifest']} (root {result['root'][:16]})"
        )


def _check_room(ranks: int, useful: int) -> None:
    if ranks > useful:
        raise BadInput("ranks", ranks, f"are more than the {useful} that have anything to do; use fewer")


def _check_device(device: str) -> None:
    if device not in ("auto", "cpu"):
        # The ranks' own check, made here before any of them starts; only CUDA is worth importing torch for.
        from render.distributed import choose_device

        choose_device(device)


def _folder(out: str | None) -> str | None:
    """`--out`; refused where it names one picture, since an image is a folder of tiles."""
    if out is None or not out.lower().endswith(_PICTURES) or Path(out).is_dir():
        return out
    folder = out[: out.rindex(".")]
    fix = (
        f"names a file, and an image is a folder of tiles; use --out {folder}, then: chorale export {folder} "
    )
    raise BadInput("out", out, f"{fix}{Path(out).name}")


def _check_folder(target: Store) -> None:
    if isinstance(target, LocalStore) and target.folder.exists() and not target.folder.is_dir():
        raise BadInput("out", str(target.folder), "is a file; name a folder")
