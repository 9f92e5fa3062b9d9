"""`chorale k8s`: images as Kubernetes objects."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import yaml

from jobs.cli.group_options import whole
from jobs.kubernetes import OneImage, documents
from render.errors import BadInput
from render.models.model_paths import find_model_paths, model_info
from render.plan.plan import make_plan
from render.spec import Spec, read_spec_file

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""A DNS label, which names of queues and claims have to be."""


@click.group(epilog="Example: chorale k8s render examples/vase.yaml --ranks 8 --gpus-per-pod 4 --queue night")
def k8s() -> None:
    """Images as objects for kubectl apply."""


@k8s.command(
    name="render",
    epilog="Example: chorale k8s render examples/vase.yaml --ranks 8 --gpus-per-pod 4 --queue night",
)
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--ranks", default=None, help="Ranks of the image, over all pods.")
@click.option("--gpus-per-pod", default=None, help="GPUs of a pod, each for one rank. [1]")
@click.option("--cpus-per-pod", default=None, help="Ranks of a pod on CPUs instead.")
@click.option("--queue", default=None, help="Kueue's local queue to wait in.")
@click.option("--least-ranks", default=None, help="Kueue may begin with so few. Needs --queue.")
@click.option("--jobset", is_flag=True, help="A JobSet instead of a Job.")
@click.option("--out", default=None, help="s3://bucket/prefix for the image. [CHORALE_STORE_URL there]")
@click.option("--claim", default=None, help="A claim that all pods can write, instead of a bucket.")
@click.option("--model", default=None, help="The model as the pods see it, e.g. /models/sdxl. [the spec's]")
@click.option("--refiner", default=None, help="The refiner as the pods see it. [the spec's]")
@click.option("--models-claim", default=None, help="A claim with models, mounted at /models.")
@click.option("--image", default=None, help="The container image.")
@click.option("--memory", default=None, help="GiB of memory of a pod. [16 per GPU, 3 per CPU, and /dev/shm]")
@click.option("--grace", default="120", show_default=True, help="Seconds for a step and its checkpoint.")
@click.option("--checkpoint-every", default=None, help="Seconds between checkpoints. [30]")
@click.option("--deadline", default=None, help="Seconds after which the image is given up.")
def render_command(spec: Path, **options: Any) -> None:
    """Print one image as a Job (or JobSet) with all that it needs, as YAML; queues and applies nothing.

    Its pods meet by name, keep checkpoints where the image goes, and go on from them when one is replaced.
    """
    wanted = _wanted(Spec.from_mapping(read_spec_file(spec)), options)
    click.echo(yaml.safe_dump_all(documents(wanted), sort_keys=False, allow_unicode=True), nl=False)


def _wanted(spec: Spec, options: dict[str, Any]) -> OneImage:
    if spec.init is not None:
        raise BadInput("init", spec.init.path, "is a file that no pod has; submit this image to a farm")
    if options["refiner"] and spec.refiner is None:
        raise BadInput("refiner", options["refiner"], "is not in the spec; name it there too")
    info = model_info(find_model_paths(spec.model, spec.refiner))
    digest = spec.digest(info.digest)
    useful = make_plan(spec, info, 1).useful_ranks
    device, per_pod = _per_pod(options["gpus_per_pod"], options["cpus_per_pod"])
    pods = _pods("ranks", options["ranks"], per_pod, useful)
    _check_names(options)
    optional: dict[str, Any] = {}
    if options["image"]:
        optional["image"] = options["image"]
    return OneImage(
        spec=replace(spec, model=options["model"] or spec.model, refiner=options["refiner"] or spec.refiner),
        digest=digest,
        pods=pods,
        ranks_per_pod=per_pod,
        device=device,
        out=_out(options["out"], options["claim"], digest),
        queue=options["queue"],
        least_pods=_least_pods(options, per_pod, pods),
        jobset=options["jobset"],
        claim=options["claim"],
        models_claim=options["models_claim"],
        grace_s=whole("grace", options["grace"], 1, 3600),
        checkpoint_s=_maybe("checkpoint-every", options["checkpoint_every"], 86_400, low=0),
        deadline_s=_maybe("deadline", options["deadline"], 10**7),
        memory_gib=_maybe("memory", options["memory"], 10_000),
        **optional,
    )


def _per_pod(gpus: str | None, cpus: str | None) -> tuple[str, int]:
    if cpus is None:
        return "cuda", whole("gpus-per-pod", gpus or "1", 1, 16)
    if gpus is not None:
        raise BadInput("cpus-per-pod", cpus, "cannot go with --gpus-per-pod; use one of them")
    return "cpu", whole("cpus-per-pod", cpus, 1, 256)


def _pods(field: str, ranks: str | None, per_pod: int, useful: int) -> int:
    count = whole(field, ranks, 1, 1024)
    if count > useful:
        raise BadInput(field, count, f"are more than the {useful} that have anything to do; use fewer")
    if count % per_pod:
        raise BadInput(field, count, f"are not divisible by {per_pod} per pod; use a multiple of {per_pod}")
    return count // per_pod


def _least_pods(options: dict[str, Any], per_pod: int, pods: int) -> int | None:
    least = options["least_ranks"]
    if least is None:
        return None
    if options["queue"] is None or options["jobset"]:
        raise BadInput("least-ranks", least, "is for a Job in a queue; add --queue, leave --jobset")
    return _pods("least-ranks", least, per_pod, pods * per_pod)


def _check_names(options: dict[str, Any]) -> None:
    for field in ("queue", "claim", "models_claim"):
        value = options[field]
        if value is not None and not _NAME.fullmatch(value):
            raise BadInput(
                field.replace("_", "-"),
                value,
                "is no name in Kubernetes; use lower-case letters, digits and dashes, e.g. night",
            )


def _out(out: str | None, claim: str | None, digest: str) -> str:
    if claim is not None:
        if out is not None:
            raise BadInput("out", out, "cannot go with --claim, which is where the image goes")
        return f"/images/{digest}"
    if out is None:
        return f"$(CHORALE_STORE_URL)/{digest}"
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]*(/[^\s$]*)?", out):
        raise BadInput("out", out, "is not s3://bucket/prefix; pods share no folder but a --claim")
    return out


def _maybe(field: str, text: str | None, high: int, low: int = 1) -> int | None:
    return None if text is None else whole(field, text, low, high)
