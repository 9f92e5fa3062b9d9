"""`chorale k8s`: Kubernetes objects that render one image."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import click
import yaml

from jobs.cli.group_options import whole
from jobs.cli.help import CommandGroup, examples
from jobs.kubernetes import MODELS_MOUNT, OneImage, documents
from render.errors import BadInput
from render.models.folder import local_path
from render.models.model_paths import find_model_paths, model_info
from render.plan.plan import make_plan
from render.spec import AUTO, Spec, read_spec_file
from render.spec.enlarger import BUILTIN_FILE
from render.spec.named_files import named_pictures, named_weights

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""A DNS label: the form of the names of queues and claims."""
_PINNED = re.compile(r"[a-z0-9][a-z0-9._/:-]*@sha256:[0-9a-f]{64}")
_LABEL_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
"""The form of the names of labels."""


_EXAMPLE = examples("chorale k8s render examples/vase.yaml --ranks 8 --gpus-per-pod 4 --queue night")


@click.group(cls=CommandGroup, epilog=_EXAMPLE)
def k8s() -> None:
    """Print Kubernetes objects for kubectl apply."""


@k8s.command(name="render", epilog=_EXAMPLE)
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--ranks", default=None, help="Number of ranks, over all pods.")
@click.option("--gpus-per-pod", default=None, help="GPUs per pod, one for each rank. [1]")
@click.option("--cpus-per-pod", default=None, help="CPU ranks per pod, instead of GPUs.")
@click.option("--queue", default=None, help="Local queue of Kueue.")
@click.option("--least-ranks", default=None, help="Minimum ranks with which Kueue may start. Needs --queue.")
@click.option("--jobset", is_flag=True, help="Print a JobSet instead of a Job.")
@click.option("--out", default=None, help="s3://bucket/prefix of the image. [CHORALE_STORE_URL in the pods]")
@click.option(
    "--claim", default=None, help="PersistentVolumeClaim that all pods can write, instead of a bucket."
)
@click.option("--model", default=None, help="Path of the model in the pods, e.g. /models/sdxl. [the spec's]")
@click.option("--refiner", default=None, help="Path of the refiner in the pods. [the spec's]")
@click.option("--models-claim", default=None, help="PersistentVolumeClaim with models, mounted at /models.")
@click.option(
    "--model-image", default=None, help="Image with models, REGISTRY/NAME@sha256:DIGEST, mounted at /models."
)
@click.option("--gang", is_flag=True, help="Kubernetes starts all pods or none. Needs Kubernetes 1.37.")
@click.option(
    "--topology",
    default=None,
    help="Label of nodes; pods are kept in one domain. Needs --queue, --jobset or --gang.",
)
@click.option(
    "--device-class",
    default=None,
    help="DeviceClass of GPUs by dynamic resource allocation, e.g. gpu.nvidia.com.",
)
@click.option("--image", default=None, help="Container image. [chorale:VERSION]")
@click.option(
    "--memory", default=None, help="Memory of a pod in GiB. [16 per GPU or 3 per CPU rank, plus /dev/shm]"
)
@click.option(
    "--grace",
    default="120",
    show_default=True,
    help="Termination grace period in seconds: time for a step and its checkpoint.",
)
@click.option("--checkpoint-every", default=None, help="Seconds between checkpoints. [30]")
@click.option("--deadline", default=None, help="Seconds after which the Job is stopped.")
def render_command(spec: Path, **options: Any) -> None:
    """Print a Job (or JobSet) that renders one image, and the objects that it needs, as YAML.

    Nothing is applied. The pods find each other by name and write checkpoints to the image's store; a
    replaced pod resumes from the last one.
    """
    image = _one_image(Spec.from_mapping(read_spec_file(spec)), options)
    click.echo(yaml.safe_dump_all(documents(image), sort_keys=False, allow_unicode=True), nl=False)


def _one_image(spec: Spec, options: dict[str, Any]) -> OneImage:
    _check_files(spec, options)
    if options["refiner"] and spec.refiner is None:
        raise BadInput("refiner", options["refiner"], "is not in the spec; add it there too")
    info = model_info(find_model_paths(*spec.model_names))
    if spec.dtype == AUTO:
        raise BadInput("dtype", AUTO, "is unknown before a pod runs; name one, e.g. bfloat16")
    digest = spec.digest(info.digest)
    useful = make_plan(spec, info, 1).useful_ranks
    device, per_pod = _per_pod(options["gpus_per_pod"], options["cpus_per_pod"])
    pods = _pods("ranks", options["ranks"], per_pod, useful)
    _check_names(options)
    _check_scheduling(options, device)
    optional: dict[str, Any] = {}
    if options["image"]:
        optional["container_image"] = options["image"]
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
        model_image=options["model_image"],
        gang=options["gang"],
        device_class=options["device_class"],
        topology=options["topology"],
        grace_s=whole("grace", options["grace"], 1, 3600),
        checkpoint_s=_maybe("checkpoint-every", options["checkpoint_every"], 86_400, low=0),
        deadline_s=_maybe("deadline", options["deadline"], 10**7),
        memory_gib=_maybe("memory", options["memory"], 10_000),
        **optional,
    )


def _check_files(spec: Spec, options: dict[str, Any]) -> None:
    """Raise `BadInput` for what the spec names on this machine and pods do not have."""
    for field, path in named_pictures(spec):
        raise BadInput(field, path, "is a file that pods do not have; submit this image to a farm")
    for field in ("model", "refiner"):
        name = getattr(spec, field)
        if not name or options[field] or PurePosixPath(name).is_relative_to(MODELS_MOUNT):
            continue
        if local_path(name) is not None:
            fix = f"is on this machine and not in the pods; give its path there as --{field}"
            raise BadInput(field, name, fix)
    for field, path in named_weights(spec):
        if (field, path) == ("enlarger", str(BUILTIN_FILE)):
            continue
        if not PurePosixPath(path).is_relative_to(MODELS_MOUNT):
            fix = (
                f"is on this machine and not in the pods; put it below {MODELS_MOUNT} here and in the volume "
                "of --models-claim, or submit this image to a farm"
            )
            raise BadInput(field, path, fix)
        if not (options["models_claim"] or options["model_image"]):
            raise BadInput(field, path, "is not mounted in the pods; add --models-claim or --model-image")


def _per_pod(gpus: str | None, cpus: str | None) -> tuple[str, int]:
    if cpus is None:
        return "cuda", whole("gpus-per-pod", gpus or "1", 1, 16)
    if gpus is not None:
        raise BadInput("cpus-per-pod", cpus, "cannot be used with --gpus-per-pod; use one of them")
    return "cpu", whole("cpus-per-pod", cpus, 1, 256)


def _pods(field: str, ranks: str | None, per_pod: int, useful: int) -> int:
    count = whole(field, ranks, 1, 1024)
    if count > useful:
        raise BadInput(field, count, f"is more than the {useful} ranks that can be used; use fewer")
    if count % per_pod:
        raise BadInput(
            field,
            count,
            f"is not a multiple of the {per_pod} ranks per pod; use a multiple of {per_pod}",
        )
    return count // per_pod


def _least_pods(options: dict[str, Any], per_pod: int, pods: int) -> int | None:
    least = options["least_ranks"]
    if least is None:
        return None
    if options["queue"] is None or options["jobset"]:
        raise BadInput("least-ranks", least, "needs a Job in a queue; add --queue and do not use --jobset")
    return _pods("least-ranks", least, per_pod, pods * per_pod)


def _check_names(options: dict[str, Any]) -> None:
    for field in ("queue", "claim", "models_claim"):
        value = options[field]
        if value is not None and not _NAME.fullmatch(value):
            raise BadInput(
                field.replace("_", "-"),
                value,
                "is not a Kubernetes name; use lower-case letters, digits and dashes, e.g. night",
            )


def _check_scheduling(options: dict[str, Any], device: str) -> None:
    if (image := options["model_image"]) is not None:
        if not _PINNED.fullmatch(image):
            raise BadInput("model-image", image, "has no digest; use REGISTRY/NAME@sha256:DIGEST")
        if options["models_claim"] is not None:
            raise BadInput("model-image", image, "cannot be used with --models-claim; use one of them")
    if options["gang"] and options["queue"] is not None:
        raise BadInput("gang", "true", "cannot be used with --queue: Kueue starts all pods or none itself")
    if (topology := options["topology"]) is not None:
        if not (options["queue"] or options["jobset"] or options["gang"]):
            raise BadInput("topology", topology, "needs --queue, --jobset or --gang; add one of them")
        if not _LABEL_KEY.fullmatch(topology):
            raise BadInput("topology", topology, "is not a label; use e.g. topology.kubernetes.io/zone")
    if (devices := options["device_class"]) is not None:
        if device != "cuda":
            raise BadInput("device-class", devices, "cannot be used with --cpus-per-pod; leave one out")
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", devices):
            raise BadInput("device-class", devices, "is not a DeviceClass; use e.g. gpu.nvidia.com")


def _out(out: str | None, claim: str | None, digest: str) -> str:
    if claim is not None:
        if out is not None:
            raise BadInput("out", out, "cannot be used with --claim, where the image is written to")
        return f"/images/{digest}"
    if out is None:
        return f"$(CHORALE_STORE_URL)/{digest}"
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]*(/[^\s$]*)?", out):
        raise BadInput("out", out, "is not s3://bucket/prefix; use one, or --claim for a shared volume")
    return out


def _maybe(field: str, text: str | None, high: int, low: int = 1) -> int | None:
    return None if text is None else whole(field, text, low, high)
