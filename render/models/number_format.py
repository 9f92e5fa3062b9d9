"""What `--dtype auto` stands for: found when model and device are known, and recorded in its place."""

from __future__ import annotations

from pathlib import Path

from render.models.folder import family_of
from render.models.model_paths import ModelPaths
from render.models.weights import weight_files
from render.safetensors_file import dtype_of
from render.spec import AUTO, Spec


def resolve_dtype(spec: Spec, paths: ModelPaths, bfloat16: bool | None) -> Spec:
    """The spec with the number format that `auto` means; the spec itself where it names one.

    `bfloat16` says whether the GPUs that will render have it, None where a CPU will
    (`render.launch.gpus.local_bfloat16`). On a CPU it is float32:
    halves save memory there and take longer. On a GPU it is float16 where the network's files are in it, or
    where nothing else is a half; else bfloat16. Raises `ModelNotUsable`.
    """
    if spec.dtype != AUTO:
        return spec
    if bfloat16 is None:
        return spec.with_changes(dtype="float32")
    return spec.with_changes(
        dtype="bfloat16" if bfloat16 and _stored(paths.model) != "float16" else "float16"
    )


def _stored(model: Path) -> str:
    files = (model,) if model.is_file() else weight_files(model / family_of(model).network)
    return dtype_of(files)
