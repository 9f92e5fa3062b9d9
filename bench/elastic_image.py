"""The images that the groups of `bench.elastic` and `bench.elastic_nodes` render."""

from __future__ import annotations

from pathlib import Path

from render.launch.rank_group import RankGroup
from render.launch.request import Request
from render.models.folder import read_model_info, resolve_model
from render.models.model_paths import ModelPaths
from render.output.manifest import KEY, parse_manifest
from render.spec import Spec

SPEC = Spec(prompt="a red vase", width=512, height=512, steps=24, strength=1.0, seed=11)
SMALL = Spec(prompt="a red vase", width=256, height=256, steps=60, strength=1.0, seed=11)


def request_for(spec: Spec, out: str, *, last: bool) -> Request:
    """The request of an image, into a folder."""
    model = resolve_model("builtin")
    return Request(
        spec=spec.to_dict(),
        folders=ModelPaths(model=model),
        info=read_model_info(model),
        device="cpu",
        out=out,
        last=last,
    )


def published_root(out: Path) -> str:
    """The root of the image in a folder."""
    return parse_manifest((out / KEY).read_bytes(), "bench").root


def root_of(spec: Spec, out: Path) -> str:
    """The root of one rank: the oracle."""
    alone = RankGroup(1)
    try:
        alone.render(request_for(spec, str(out), last=True))
        return published_root(out)
    finally:
        alone.close()
