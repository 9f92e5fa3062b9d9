"""Compares two versions of the project by what they render: digests and roots of 24 specs, and old state.

    python -m bench.golden render --tree ../old --out old.json
    python -m bench.golden render --tree . --out new.json
    python -m bench.golden compare old.json new.json
    python -m bench.golden carry --old ../old --new .

Only the command line and file formats are used, so that the versions may differ in all their modules. Both
must run with the same Python environment on the same kind of machine, and with the same --models folder.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from bench.golden_carry import PARTS, carry_checks
from bench.golden_specs import golden_specs, make_inputs
from bench.golden_tree import CommandFailed, Tree

RANKS = (1, 3)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_models_option = click.option(
    "--models",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("out/golden"),
    show_default=True,
    help="Where the tiny models and the init image are built once and kept.",
)


@click.group()
def main() -> None:
    """Compare what two versions of the project render."""


@main.command()
@click.option("--tree", type=_FOLDER, required=True, help="The checkout that renders.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The JSON file to write.")
@_models_option
@click.option("--only", multiple=True, help="Render only the spec of this name. May repeat.")
def render(tree: Path, out: Path, models: Path, only: tuple[str, ...]) -> None:
    """Render all specs at 1 and 3 ranks; exit 1 if the number of ranks changes a root."""
    make_inputs(models.resolve())
    specs = golden_specs(models.resolve())
    chosen = only or tuple(specs)
    started = time.monotonic()
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="golden-") as name:
        renderer = Tree.at(tree, Path(name) / "tree")
        for number, spec_name in enumerate(chosen, start=1):
            found[spec_name] = _rendered(renderer, spec_name, specs[spec_name], Path(name))
            _log(f"{number}/{len(chosen)} {spec_name}: root {found[spec_name]['ranks1'][:16]}")
    out.write_text(json.dumps(found, indent=1) + "\n")
    _log(f"{len(found)} specs in {time.monotonic() - started:.0f} s, in {out}")
    uneven = [name for name, roots in found.items() if roots["ranks1"] != roots["ranks3"]]
    if uneven:
        raise click.ClickException(f"other roots at 3 ranks than at 1: {', '.join(uneven)}")


def _rendered(tree: Tree, name: str, values: dict[str, Any], folder: Path) -> dict[str, str]:
    """Roots by ranks, and the digest."""
    spec = folder / f"{name}.json"
    spec.write_text(json.dumps(values))
    results = {}
    for ranks in RANKS:
        started = time.monotonic()
        out = folder / f"{name}-{ranks}"
        words = ("render", "--spec", str(spec), "--ranks", str(ranks), "--device", "cpu", "--out", str(out))
        try:
            results[ranks] = tree.call(*words)
        except CommandFailed as exc:
            raise click.ClickException(f"{name} at {ranks} ranks: {exc}") from exc
        _log(f"  {name} at {ranks} ranks: {time.monotonic() - started:.1f} s")
        if results[ranks]["ranks"] != ranks:
            raise click.ClickException(f"{name}: rendered by {results[ranks]['ranks']} ranks, not {ranks}")
    digests = {result["digest"] for result in results.values()}
    if len(digests) != 1:
        raise click.ClickException(f"{name}: other digests at other numbers of ranks: {digests}")
    return {f"ranks{ranks}": results[ranks]["root"] for ranks in RANKS} | {"digest": digests.pop()}


@main.command()
@click.argument("old", type=_FILE)
@click.argument("new", type=_FILE)
def compare(old: Path, new: Path) -> None:
    """Print what is equal in two files of `render`; exit 1 when anything is not."""
    ours, theirs = (json.loads(file.read_text()) for file in (old, new))
    names = list(ours | theirs)
    if not names:
        raise click.ClickException("neither file holds a spec")
    width = max(map(len, names))
    click.echo(f"{'name':<{width}}  digest     1 rank     3 ranks")
    differences = 0
    for name in names:
        equal = [_is_equal(ours, theirs, name, key) for key in ("digest", "ranks1", "ranks3")]
        differences += not all(equal)
        words = "  ".join(f"{'equal' if each else 'DIFFERENT':<9}" for each in equal)
        missing = "".join(f"  not in {file}" for file, has in ((old, ours), (new, theirs)) if name not in has)
        click.echo(f"{name:<{width}}  {words}{missing}".rstrip())
    click.echo(f"{len(names)} specs, {differences} different")
    sys.exit(1 if differences else 0)


def _is_equal(ours: dict[str, Any], theirs: dict[str, Any], name: str, key: str) -> bool:
    return name in ours and name in theirs and ours[name][key] == theirs[name][key]


@main.command()
@click.option("--old", type=_FOLDER, required=True, help="The checkout that leaves its state behind.")
@click.option("--new", type=_FOLDER, required=True, help="The checkout that goes on from it.")
@_models_option
@click.option("--keep", type=click.Path(path_type=Path), help="Work in this new folder, and leave it there.")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="Only this part. May repeat.")
def carry(old: Path, new: Path, models: Path, keep: Path | None, only: tuple[str, ...]) -> None:
    """Check that the new version continues from the state of the old one; exit 1 if not.

    The state is a farm with jobs in several states, renders stopped half way, and finished images.
    """
    make_inputs(models.resolve())
    failed = total = 0
    with tempfile.TemporaryDirectory(prefix="carry-") as name:
        folder = Path(name) if keep is None else keep.resolve()
        old_tree, new_tree = Tree.at(old, folder / "old"), Tree.at(new, folder / "new")
        try:
            for check in carry_checks(old_tree, new_tree, models.resolve(), folder, only or PARTS):
                total += 1
                failed += not check.holds
                click.echo(f"{'ok' if check.holds else 'FAILED':<6}  {check.name}: {check.detail}")
        except CommandFailed as exc:
            raise click.ClickException(str(exc)) from exc
    click.echo(f"{total} checks, {failed} failed")
    sys.exit(1 if failed else 0)


def _log(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
