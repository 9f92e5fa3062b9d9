"""`chorale rerender`: render a finished image again from its manifest, and say whether it is the same."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from infra.settings import read_settings
from infra.store.open import open_store
from jobs.cli.help import examples
from jobs.cli.render import render_here
from jobs.cli.terminal import print_json, print_line
from jobs.errors import FAILED
from jobs.formatting import plural, thousands
from jobs.image_source import open_image
from jobs.image_store import published_image
from render.errors import BadInput
from render.launch.gpus import gpu_names
from render.model_info import ModelInfo
from render.models.model_paths import check_additions, find_model_paths, model_info
from render.numerics import NUMERICS, numerics_of
from render.output.manifest import KEY, Manifest, parse_manifest
from render.spec import Spec

_PACKAGES = ("torch", "diffusers", "transformers", "pillow")
_SHOWN = 16


@click.command(epilog=examples("chorale rerender out/vase --verify"))
@click.argument("manifest")
@click.option("--verify", is_flag=True, help="Compare, and keep nothing. Exit code 3: the images differ.")
@click.option("--out", default=None, help="Folder or s3://bucket/prefix. [out/DIGEST-again]")
@click.option("--model", default=None, help="Where the model is now. [as the manifest names it]")
@click.option("--ranks", default="auto", show_default=True, help="Ranks on this machine, or auto.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--timeout", type=float, default=None, help="Seconds after which it is given up (exit 5).")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON on stdout.")
@click.pass_context
def rerender(
    context: click.Context,
    manifest: str,
    verify: bool,
    out: str | None,
    model: str | None,
    ranks: str,
    device: str,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Render an image again from its manifest, and compare the two.

    MANIFEST is a manifest.json, the folder or s3://bucket/prefix of a finished image, or a job's id. Equal
    specs give equal images on one kind of device with one set of versions: what differs of the model, the
    versions, the device and the spec is said. With other weights --verify renders nothing.
    """
    before = _manifest(manifest)
    spec, info = _spec_of(before, manifest, model)
    differs = differences(before, spec, info, _kind(device))
    other_model = any(each["what"] == "model" for each in differs)
    if verify and other_model:
        result: dict[str, Any] = {"identical": False, "before": before.root, "root": None}
    else:
        place = tempfile.TemporaryDirectory(prefix="chorale-") if verify and out is None else nullcontext()
        with place as folder:
            target = out or folder or str(Path("out") / f"{before.digest[:_SHOWN]}-again")
            paths = find_model_paths(*spec.model_names)
            rendered = render_here(
                spec, paths, info, ranks=ranks, device=device, out=target, timeout=timeout, quiet=as_json
            )
            if rendered["already"]:
                raise BadInput("out", target, "holds this image already; give another location")
            result = _compared(before, published_image(open_store(target, read_settings({}), field="out")))
            result |= {"seconds": rendered["seconds"], "ranks": rendered["ranks"]}
            result["manifest"] = None if folder else rendered["manifest"]
    result["differs"] = differs
    if as_json:
        print_json(result)
    else:
        _print(result)
    if verify and not result["identical"]:
        context.exit(FAILED)


def differences(before: Manifest, spec: Spec, info: ModelInfo, kind: str) -> list[dict[str, str]]:
    """What an image depends on and is not as it was: `what`, and the values `then` and `now`.

    `kind` is that of the device here, `cpu` or `cuda`.
    """
    packages = numerics_of(kind).packages
    pairs = [
        ("model", before.model.digest, info.digest),
        ("device", before.device, kind),
        ("engine", before.numerics.engine, NUMERICS),
        *((name, before.versions.get(name), packages.get(name)) for name in _PACKAGES),
    ]
    found = [
        {"what": what, "then": str(then)[:_SHOWN], "now": str(now)[:_SHOWN]}
        for what, then, now in pairs
        # What an older manifest does not tell is not known to differ.
        if then not in (None, "") and then != now
    ]
    digest = spec.digest(info.digest)
    if digest != before.digest and not any(each["what"] == "model" for each in found):
        found.append({"what": "spec", "then": before.digest[:_SHOWN], "now": digest[:_SHOWN]})
    return found


def _manifest(place: str) -> Manifest:
    """The manifest of a file, an image or a job. Raises `BadInput`."""
    path = Path(place)
    if path.is_file():
        try:
            return parse_manifest(path.read_bytes(), place)
        except OSError as exc:
            raise BadInput("manifest", place, f"cannot be read ({exc.strerror}); check the path") from exc
    return published_image(open_image(place.removesuffix(f"/{KEY}"), read_settings({})))


def _spec_of(before: Manifest, place: str, model: str | None) -> tuple[Spec, ModelInfo]:
    """The spec, with the info of its model as it is here. Raises `BadInput`."""
    if not before.spec:
        raise BadInput("manifest", place, "has no spec; it was written by a version that kept none")
    spec = Spec.from_mapping(before.spec | ({} if model is None else {"model": model}))
    for asset in spec.assets:
        if not Path(asset.path).exists():
            fix = f"is not here any more; put the file with the SHA-256 {asset.digest} there"
            raise BadInput(asset.part_of, asset.path, fix)
    folders = find_model_paths(*spec.model_names)
    check_additions(folders, spec)
    return spec, model_info(folders)


def _kind(device: str) -> str:
    return "cpu" if device == "cpu" or not gpu_names() else "cuda"


def _compared(before: Manifest, after: Manifest) -> dict[str, Any]:
    tiles = sorted({*before.tiles, *after.tiles})
    other = [key for key in tiles if _sha256(before, key) != _sha256(after, key)]
    return {
        "identical": after.root == before.root,
        "before": before.root,
        "root": after.root,
        "tiles": len(tiles),
        "other_tiles": len(other),
    }


def _sha256(manifest: Manifest, key: str) -> str | None:
    entry = manifest.tiles.get(key)
    return None if entry is None else entry.sha256


def _print(result: dict[str, Any]) -> None:
    for each in result["differs"]:
        print_line(f"{each['what']}: was {each['then']}, is {each['now']}")
    if result["root"] is None:
        print_line("Not rendered: the model's weights are others than those of the image")
    elif result["identical"]:
        print_line(f"Identical: {plural(result['tiles'], 'tile')} (root {result['root'][:_SHOWN]})")
    else:
        share = f"{thousands(result['other_tiles'])} of {plural(result['tiles'], 'tile')}"
        print_line(f"Different: {share} (root was {result['before'][:_SHOWN]}, is {result['root'][:_SHOWN]})")
        if not result["differs"]:
            print_line("Model, versions, device and spec are as they were")
    if result.get("manifest"):
        print_line(result["manifest"])
