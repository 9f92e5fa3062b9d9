"""The Python face of the engine: images on many ranks, in the manner of a diffusers pipeline.

    from render import ParallelizedDiffusionPipeline

    with ParallelizedDiffusionPipeline("builtin", num_modules=2) as pipe:
        image = pipe("a red vase on a wooden table", num_inference_steps=20, seed=7).images[0]
        large = pipe.generate_image("a harbor at dawn", width=4096, height=4096)
        large.export("harbor.png")

The ranks are processes that keep their model loaded between calls, until `close()`. For queues of images use
the farm (`chorale up`).
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from render.errors import BadInput, GroupFailed
from render.events import Event, OnEvent, StepDone, ignore_event
from render.launch.gpus import local_bfloat16, processors
from render.launch.rank_group import RankGroup
from render.launch.request import LATENTS_KEY, ON_DEVICE, TEXT_ENCODERS, FurtherImage, Request
from render.model_info import ModelInfo
from render.models.model_paths import ModelPaths, check_additions, find_model_paths, model_info
from render.models.number_format import resolve_dtype
from render.output.manifest import KEY, Manifest, parse_manifest
from render.plan.plan import Plan, make_plan
from render.progress_bar import ProgressBar
from render.rendered_image import PipelineOutput, RenderedImage, check_fits_memory
from render.spec import IMAGE_FIELDS, Spec

if TYPE_CHECKING:
    from PIL import Image

OutputType = Literal["pil", "np", "latent"]
OnStepEnd = Callable[["ParallelizedDiffusionPipeline", int, float, dict[str, Any]], Any]
"""Called with the pipeline, the number of the step from 0 over all stages, the model's timestep, and an empty
dictionary: the latents stay in the ranks. What it returns is ignored; what it raises ends the render."""
_SPEC_FIELDS = tuple(field.name for field in Spec.fields())
_OWN_KEYWORDS = (
    "resolution",
    "num_inference_steps",
    "generator",
    "callback_on_step_end",
    "output_type",
    "out",
    "on_event",
)


class ParallelizedDiffusionPipeline:
    """Renders images with `num_modules` ranks on this machine, each on its own region of the canvas.

    The ranks start with the first image and stay until `close()`, the end of the `with` block, or the end of
    this process. An image that has work for another number of ranks restarts them. Calls of several threads
    wait for each other.
    """

    def __init__(
        self,
        model: str = "builtin",
        num_modules: int | None = None,
        tile_size: int = 512,
        device: str = "auto",
        text_encoder: str = ON_DEVICE,
    ) -> None:
        """Starts nothing yet. `model` is `builtin`, a local folder or a hub id; `num_modules` is the number
        of ranks, by default one per GPU or CPU core; `tile_size` the side of a pyramid tile in pixels;
        `text_encoder` where the text encoders are between two prompts: "gpu", the device that renders,
        "cpu", where they compute too, or "free", nowhere.
        """
        if num_modules is not None and not 1 <= num_modules <= 1024:
            raise BadInput("num_modules", num_modules, "is not from 1 to 1024")
        if text_encoder not in TEXT_ENCODERS:
            known = ", ".join(TEXT_ENCODERS)
            raise BadInput("text_encoder", text_encoder, f"is unknown; use one of {known}")
        self.text_encoder = text_encoder
        self.model, self.num_modules, self.tile_size, self.device = model, num_modules, tile_size, device
        self._progress_bar_config: dict[str, Any] = {}
        self._ranks = _WarmRanks()
        self._lock = threading.Lock()
        # Not by __del__ alone: that is not called for what still exists when the interpreter ends.
        self._finalizer = weakref.finalize(self, self._ranks.close)

    def __enter__(self) -> ParallelizedDiffusionPipeline:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the ranks. A later call starts new ones."""
        with self._lock:
            self._ranks.close()

    def set_progress_bar_config(self, **config: Any) -> None:
        """Arguments of the tqdm bar, as in diffusers: `disable=True` for none."""
        self._progress_bar_config = config

    def generate_image(
        self,
        prompt: str,
        resolution: tuple[int, int] | None = None,
        *,
        out: str | Path | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        on_event: OnEvent = ignore_event,
        **options: Any,
    ) -> RenderedImage:
        """Render one image into the folder `out`, by default `out/DIGEST`. One that is finished there is
        returned as it is.

        `resolution` is (width, height) in pixels, 1024x1024 unless given here or as `width` and `height`.
        `options` are those of a call of the pipeline, and all other fields of a spec.
        Raises `BadInput` for a value that cannot be rendered, `RenderFailed` when the render breaks off.
        """
        if resolution is not None:
            options |= dict(zip(("width", "height"), resolution, strict=True))
        with self._lock, tempfile.TemporaryDirectory(prefix="chorale-") as scratch:
            job = self._job(prompt, options, Path(scratch))
            folder = Path("out") / job.digest[:16] if out is None else Path(out)
            manifest = _finished(folder, job.digest)
            if manifest is None:
                self._render(job, folder, "image", callback_on_step_end, on_event)
                manifest = _manifest(folder)
        return RenderedImage(folder=folder, manifest=manifest)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        output_type: OutputType = "pil",
        callback_on_step_end: OnStepEnd | None = None,
        on_event: OnEvent = ignore_event,
        **options: Any,
    ) -> PipelineOutput:
        """Render an image of each prompt into memory.

        Small images are rendered several at a time, each by one rank; they share model calls, and events name
        their `image`. Large ones are rendered one after another by all ranks. The pixels are the same.

        `options` are `negative_prompt`, `width`, `height`, `num_inference_steps` (or `steps`),
        `guidance_scale`, `seed` or a `generator` whose initial seed it is, `init` and `mask` (PIL images or
        paths), `strength`, and all other fields of a spec. All prompts get the same seed; `seed`, `generator`
        and `negative_prompt` may be lists, with one value for each prompt.
        Raises `BadInput` for a value that cannot be rendered, `RenderFailed` when a render breaks off.
        """
        if output_type not in ("pil", "np", "latent"):
            raise BadInput("output_type", output_type, "is unknown; use pil, np or latent")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise BadInput("prompt", prompts, "is empty; give one prompt or more")
        with self._lock, tempfile.TemporaryDirectory(prefix="chorale-") as scratch:
            rows = _rows(prompts, options)
            jobs = [self._job(text, row, Path(scratch)) for text, row in zip(prompts, rows, strict=True)]
            if output_type == "latent":
                return self._latents(jobs, Path(scratch), callback_on_step_end, on_event)
            check_fits_memory(jobs[0].spec.width, jobs[0].spec.height)
            folders = self._render_all(jobs, Path(scratch), "image", callback_on_step_end, on_event)
            images = [RenderedImage(folder=folder, manifest=_manifest(folder)) for folder in folders]
            pil = [image.pil() for image in images]
        manifests = tuple(image.manifest for image in images)
        return PipelineOutput(images=_as_array(pil) if output_type == "np" else pil, manifests=manifests)

    def _latents(
        self, jobs: list[_Job], scratch: Path, on_step_end: OnStepEnd | None, on_event: OnEvent
    ) -> PipelineOutput:
        import torch
        from safetensors.torch import load_file

        folders = self._render_all(jobs, scratch, "latents", on_step_end, on_event)
        latents = [load_file(folder / LATENTS_KEY)["latents"] for folder in folders]
        return PipelineOutput(images=torch.stack(latents))

    def _job(self, prompt: str, options: Mapping[str, Any], scratch: Path) -> _Job:
        """Check everything that can be wrong, before any process starts."""
        values = _spec_values(options, scratch)
        spec = Spec.from_mapping(
            {"model": self.model, "tile_size": self.tile_size} | values | {"prompt": prompt}
        )
        paths = find_model_paths(*spec.model_names)
        info = model_info(paths)
        check_additions(paths, spec)
        spec = resolve_dtype(spec, paths, local_bfloat16(self.device))
        plan = make_plan(spec, info, 1)
        ranks = min(self.num_modules or processors(), plan.useful_ranks)
        return _Job(spec=spec, paths=paths, info=info, plan=plan, ranks=ranks)

    def _render_all(
        self,
        jobs: Sequence[_Job],
        scratch: Path,
        output: Literal["image", "latents"],
        on_step_end: OnStepEnd | None,
        on_event: OnEvent,
    ) -> list[Path]:
        """Render jobs that differ in their prompts and seeds; returns the folder of each."""
        folders = [scratch / str(number) for number in range(len(jobs))]
        if len(jobs) > 1 and jobs[0].plan.images_at_once > 1:
            more = tuple(
                FurtherImage(spec=job.spec.to_dict(), out=str(folder.absolute()))
                for job, folder in zip(jobs[1:], folders[1:], strict=True)
            )
            ranks = min(self.num_modules or processors(), len(jobs))
            first = dataclasses.replace(jobs[0], ranks=ranks)
            self._render(first, folders[0], output, on_step_end, on_event, more)
        else:
            for job, folder in zip(jobs, folders, strict=True):
                self._render(job, folder, output, on_step_end, on_event)
        return folders

    def _render(
        self,
        job: _Job,
        folder: Path,
        output: Literal["image", "latents"],
        on_step_end: OnStepEnd | None,
        on_event: OnEvent,
        more: tuple[FurtherImage, ...] = (),
    ) -> None:
        request = Request(
            more=more,
            spec=job.spec.to_dict(),
            folders=job.paths,
            info=job.info,
            device=self.device,
            text_encoder=self.text_encoder,
            out=str(folder.absolute()),
            output=output,
            last=False,
        )
        stages = [stage.stage for stage in job.plan.stages]
        before = [sum(s.steps - s.first_step for s in stages[:number]) for number in range(len(stages))]

        def forward(event: Event) -> None:
            bar.on_event(event)
            on_event(event)
            if on_step_end is not None and isinstance(event, StepDone):
                on_step_end(self, before[event.stage] + event.step - 1, event.timestep, {})

        with ProgressBar(stages, self._progress_bar_config, 1 + len(more)) as bar:
            self._ranks.render(job.ranks, request, forward)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    spec: Spec
    paths: ModelPaths
    info: ModelInfo
    plan: Plan
    ranks: int

    @property
    def digest(self) -> str:
        return self.spec.digest(self.info.digest)


class _WarmRanks:
    """The group that has rendered last, for as long as it can be used again."""

    def __init__(self) -> None:
        self._group: RankGroup | None = None
        self._pid = os.getpid()

    def render(self, ranks: int, request: Request, on_event: OnEvent) -> None:
        """Render with so many ranks; whatever is raised ends them. Raises `BadInput` and `RenderFailed`."""
        if self._group is None or self._group.ranks != ranks or not self._group.alive():
            self.close()
            self._group, self._pid = RankGroup(ranks), os.getpid()
        try:
            self._group.render(request, on_event)
        except GroupFailed as exc:
            self.close()
            if exc.bad_input is not None:
                raise exc.bad_input from exc
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        group, self._group = self._group, None
        # A forked copy of this process must not end the ranks of the original.
        if group is not None and self._pid == os.getpid():
            group.close()


def _rows(prompts: Sequence[str], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The options of each prompt: lists of seeds, generators and negative prompts are dealt out."""
    rows: list[dict[str, Any]] = [dict(options) for _ in prompts]
    for name in ("seed", "generator", "negative_prompt"):
        values = options.get(name)
        if not isinstance(values, list | tuple):
            continue
        if len(values) != len(prompts):
            raise BadInput(name, values, f"has {len(values)} values for {len(prompts)} prompts; give as many")
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows


def _spec_values(options: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """The fields of the spec that a call's options give; None stands for the default, as in diffusers."""
    values = {name: value for name, value in options.items() if value is not None}
    steps, generator = values.pop("num_inference_steps", None), values.pop("generator", None)
    for name in values:
        if name not in _SPEC_FIELDS:
            raise BadInput("keyword", name, f"is unknown; {_nearest(name)}")
    if steps is not None:
        _add(values, "steps", steps, "num_inference_steps")
    if generator is not None:
        if not hasattr(generator, "initial_seed"):
            raise BadInput("generator", generator, "is not a torch.Generator; use seed=")
        _add(values, "seed", generator.initial_seed(), "generator")
    for name in IMAGE_FIELDS:
        if name in values:
            values[name] = _image_path(values[name], scratch)
    if isinstance(values.get("reference"), list | tuple):
        values["reference"] = [_image_path(each, scratch) for each in values["reference"]]
    return values


def _add(values: dict[str, Any], name: str, value: Any, alias: str) -> None:
    if name in values:
        raise BadInput(alias, value, f"and {name} are both given; give one of them")
    values[name] = value


def _nearest(name: str) -> str:
    known = [*_SPEC_FIELDS, *_OWN_KEYWORDS]
    match = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {match[0]}?" if match else f"use one of {', '.join(sorted(known))}"


def _image_path(init: Any, scratch: Path) -> Any:
    """The path of an init image, a mask or a reference; a PIL image is stored as a PNG first: all of it."""
    if isinstance(init, str | Path):
        return str(init)
    if not hasattr(init, "save"):
        return init
    path = scratch / f"init-{len(list(scratch.iterdir()))}.png"
    init.save(path, "PNG")
    return str(path)


def _as_array(images: Sequence[Image.Image]) -> Any:
    import numpy as np

    return np.stack([np.asarray(image, dtype=np.float32) / 255.0 for image in images])


def _finished(folder: Path, digest: str) -> Manifest | None:
    """The manifest if this very image is there; raises `BadInput` when the folder holds another one."""
    if not (folder / KEY).exists():
        return None
    manifest = _manifest(folder)
    if manifest.digest != digest:
        raise BadInput("out", str(folder), "holds another spec's image; name another folder")
    return manifest


def _manifest(folder: Path) -> Manifest:
    return parse_manifest((folder / KEY).read_bytes(), str(folder))
