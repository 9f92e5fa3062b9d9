"""Commands of a farm that is used over its board: `chorale --url https://farm.example list`.

They take the options of the commands that use the database, and print as they do.
"""

from __future__ import annotations

import json
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from infra.store.local import LocalStore
from jobs.cli.delete import COUNTS, check_what, print_deletion
from jobs.cli.farm_options import whoami
from jobs.cli.job_columns import parse_columns
from jobs.cli.jobs import print_done, print_job, print_jobs
from jobs.cli.remote_files import FilesToSend
from jobs.cli.report import ReportOptions, print_report
from jobs.cli.review import asked_for, check_texts, print_review, resolve_all, said_of
from jobs.cli.submit import print_submission
from jobs.cli.terminal import print_json, print_line
from jobs.cli.watch import print_counts
from jobs.client import Farm
from jobs.db.state_machine import ENDED
from jobs.errors import JobFailed, Refused
from jobs.formatting import plural, size
from jobs.intake.open_table import batch_file
from jobs.intake.options import IntakeOptions, parse_options
from jobs.intake.raw_rows import Reading
from jobs.review.named_images import resolve
from render.errors import BadInput
from render.spec import Spec, read_spec_file

_POLL_S = 1.0
_LOCAL = (
    *("render", "rerender", "upscale", "plan", "verify", "schema", "download"),
    *("simulate", "doctor", "token", "k8s"),
)
"""Commands that need no farm."""
_HERE = "is not sent to the board; submit without --url, with the farm's database"
_FOLDERS = ("refiner", "vae", "base", "ip_adapter")
"""Fields whose folders and models are not sent."""


def remote_command(name: str, command: click.Command) -> click.Command:
    """The same command for a farm at an address. Raises `UsageError` for one that needs the database."""
    if name in _LOCAL:
        return command
    run = _COMMANDS.get(name)
    if run is None:
        known = ", ".join(sorted(_COMMANDS))
        raise click.UsageError(f"{name} needs the farm's database; with --url there are {known}")
    wanted = run

    @click.pass_context
    def called(context: click.Context, /, **options: Any) -> None:
        root = context.find_root().params
        file = root["token_file"]
        with Farm.with_token_file(root["url"], None if file is None else Path(file)) as farm:
            wanted(farm, **options)

    params = [each for each in command.params if each.name != "database_url"]
    return click.Command(name, params=params, callback=called, help=command.help, epilog=command.epilog)


def _list(
    farm: Farm,
    as_json: bool,
    states: tuple[str, ...],
    limit: int,
    columns: str | None,
    **wanted: Any,
) -> None:
    shown = parse_columns(columns)
    first = farm.page_of_jobs(limit=min(limit, 1000), state=list(states), **wanted)
    found = first["jobs"]
    if len(found) < limit and first["next"] is not None:
        found = list(farm.jobs(limit=limit, state=list(states), **wanted))
    print_jobs(found, first["counts"], as_json, shown)


def _show(farm: Farm, as_json: bool, job: str) -> None:
    print_job(farm.job(job), as_json)


def _wait(farm: Farm, as_json: bool, job: str | None, batch: str | None, timeout: float | None) -> None:
    if (job is None) == (batch is None):
        raise click.UsageError("Give a job or --batch" + (", not both" if job is not None else ""))
    print_counts(farm.wait(job, batch=batch, timeout_s=timeout), as_json)


def _change(verb: str) -> Callable[..., None]:
    def change(
        farm: Farm, as_json: bool, ids: tuple[str, ...], batch: str | None, queue: str | None, **options: Any
    ) -> None:
        if options.get("failed"):
            raise click.UsageError("--failed needs the farm's database; give --batch or --queue")
        if bool(ids) == (batch is not None or queue is not None):
            either = ", not both" if ids else ""
            raise click.UsageError(f"Name the jobs to {verb}, or give --batch or --queue{either}")
        print_done(verb, farm.change(verb, *ids, batch=batch, queue=queue), as_json)

    return change


def _delete(
    farm: Farm,
    as_json: bool,
    ids: tuple[str, ...],
    batch: str | None,
    images: tuple[str, ...],
    cancel: bool,
    dry_run: bool,
    yes: bool,
    detach: bool,
) -> None:
    check_what(ids, batch, images, dry_run, yes, detach)
    named = ",".join(images)
    # What is unknown is told before anything is deleted.
    each = farm.delete(*ids, batch=batch, images=named, dry_run=True)
    if yes:
        each = farm.delete(*ids, batch=batch, images=named, cancel=cancel)
    total = {name: sum(one[name] for one in each) for name in COUNTS}
    print_deletion({"batch": each[0]["batch"], **total, "deleted": yes}, as_json)


def _submit(farm: Farm, as_json: bool, skip_bad: bool, **options: Any) -> None:
    """All as a batch, one image too: then grids, seeds and dry runs are the same as for files."""
    if skip_bad:
        raise click.UsageError("--skip-bad needs the farm's database; correct the rows")
    values, intake, form = _spec_values(options), _intake(options), _form(options)
    prompt = values.get("prompt")
    path = batch_file(prompt) if isinstance(prompt, str) else None
    named = FilesToSend()
    named.add_values(values)
    if path is not None:
        named.add_rows(Reading(path=path, encoding=form["encoding"], sheet=form["sheet"]), intake)
    if named.paths:
        form["files"] = json.dumps(named.send(farm))
    try:
        if path is not None:
            defaults = {name: value for name, value in values.items() if name != "prompt"}
            result = farm.submit_batch(path, defaults=json.dumps(defaults), **form)
        else:
            name = f"{str(prompt)[:80].replace('/', ' ')}.jsonl"
            seed = {"seed": values.pop("seed")} if "seed" in values else {}
            rows = [{"custom_id": "image", **values}]
            result = farm.submit_batch(rows=rows, name=name, defaults=json.dumps(seed), **form)
    except Refused as exc:
        if as_json and "errors" in exc.details:
            print_json({"errors": exc.details["errors"]})
        for each in () if as_json else exc.details.get("errors", ()):
            print_line(f"chorale: {each['problem'] if isinstance(each, dict) else each}", error=True)
        raise
    print_submission({"bad": 0, **result}, as_json)


def _spec_values(options: dict[str, Any]) -> dict[str, Any]:
    """What a file and flags give of a spec, as texts; the farm reads them. Removed from `options`."""
    spec_file = options.pop("spec_file")
    given = {} if spec_file is None else read_spec_file(spec_file)
    if options.pop("cutout"):
        raise BadInput("cutout", True, _HERE)
    for field in Spec.inputs():
        value = options.pop(field.name) if field.flag else None
        if value not in (None, ()):
            given[field.name] = list(value) if isinstance(value, tuple) else value
    for name in _FOLDERS:
        if given.get(name) is not None:
            raise BadInput(name, str(given[name])[:200], _HERE)
    return given


def _intake(options: dict[str, Any]) -> IntakeOptions:
    """What columns are, as the farm will see them. Raises `BadInput`."""
    names = ("template", "id_column", "column_map", "ignore")
    return parse_options(**{name: options[name] for name in names})


def _form(options: dict[str, Any]) -> dict[str, Any]:
    """The other options as the API's form takes them."""
    lines = {"map": options.pop("column_map"), "grid": options.pop("grid")}
    commas = {name: options.pop(name) for name in ("after", "after_any", "channel", "require_tag")}
    form = {name: "\n".join(texts) for name, texts in lines.items()}
    form |= {name: ",".join(texts) for name, texts in commas.items()}
    return form | options | {"owner": options["owner"] or whoami(), "dry_run": options["dry_run"] or None}


def _review(
    farm: Farm,
    as_json: bool,
    batch: str,
    images: tuple[str, ...],
    verdict: str | None,
    reviewer: str | None,
    reason: str | None,
    note: str | None,
    prompt: str | None,
    negative_prompt: str | None,
    keep_seed: bool,
    **options: Any,
) -> None:
    given = asked_for(images, options)
    check_texts(given, reason, note, prompt, negative_prompt, keep_seed)

    def rows(chosen: str | None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = farm.reviews(batch, chosen)["images"]
        return found

    changed: dict[str, Any] = {}
    for action, chosen in (resolve_all(rows, given) if given else {}).items():
        if action == "reroll" or not chosen:
            continue
        reply = said_of(action, reason, note)
        words = {
            "verdict": reply.verdict,
            "reason": reply.reason,
            "note": reply.note,
            "starred": reply.starred,
        }
        farm.review(batch, chosen, reviewer=reviewer or whoami(), **words)
        changed[action] = chosen
    if "reroll" in given:
        # What has just been rejected belongs to the rejected ones.
        ids, members = resolve(rows, given["reroll"])
        again = list(dict.fromkeys(ids + members))
        changes = {"prompt": prompt, "negative_prompt": negative_prompt, "keep_seed": keep_seed or None}
        changed["reroll"] = farm.reroll(batch, again, **changes) if again else []
    found = farm.reviews(batch, None if given else verdict)
    print_review(batch, found["counts"], None if given else found["images"], changed, as_json)


def _export(
    farm: Farm,
    as_json: bool,
    image: str | None,
    target: str | None,
    batch: str | None,
    channel: str | None,
    force: bool,
    detach: bool,
    everything: bool,
    **options: Any,
) -> None:
    """An image as a file, or the files of a channel, which workers of the farm make."""
    other = next((name for name, value in options.items() if value), None)
    if other is not None:
        flag = f"--{other.replace('_', '-')}"
        raise click.UsageError(f"{flag} needs the farm's store: with --url use --channel, or JOB FILE")
    if batch is None:
        if image is None or target is None or channel is not None:
            raise click.UsageError("Give a JOB and a file, or --batch ID --channel NAME and a folder")
        _refuse_existing(Path(target), force)
        _print_files([(target, farm.download(image, target))], as_json)
        return
    if channel is None or target is not None or (image is None) != detach:
        raise click.UsageError("Give --batch ID --channel NAME and a folder; with --detach no folder")
    farm.ask_for(batch, channel)
    if detach:
        print_line(f"Files of batch {batch} for {channel} are being made")
        return
    assert image is not None, "checked above"
    _wait_for_files(farm, batch, channel)
    _print_files(_unpacked(farm, batch, channel, Path(image), force, everything), as_json)


def _wait_for_files(farm: Farm, batch: str, channel: str) -> None:
    """Until each finished image has its file, or a reason why it has none; raises `JobFailed` for those."""
    while True:
        counts = farm.batch(batch)["jobs"]
        rows = [row for row in farm.renditions(batch)["renditions"] if row["channel"] == channel]
        ended = sum(counts.get(state, 0) for state in ENDED) == sum(counts.values())
        if ended and sum(bool(row["made"] or row["problem"]) for row in rows) >= counts.get("done", 0):
            break
        time.sleep(_POLL_S)
    problems = [row for row in rows if not row["made"]]
    if problems:
        text = f"{problems[0]['file']}: {problems[0]['problem']}"
        raise JobFailed(f"{plural(len(problems), 'file')} of batch {batch} cannot be made ({text})")


def _unpacked(
    farm: Farm, batch: str, channel: str, folder: Path, force: bool, everything: bool
) -> list[tuple[str, int]]:
    written = []
    with tempfile.TemporaryDirectory(prefix="chorale-export-") as temporary:
        packed = Path(temporary) / "files.zip"
        farm.download_renditions(batch, channel, packed, **({"all": True} if everything else {}))
        with zipfile.ZipFile(packed) as opened:
            # A name is one part, whatever the answer says.
            names = {name: folder / Path(name).name for name in opened.namelist()}
            for target in names.values():
                _refuse_existing(target, force)
            for name, target in names.items():
                data = opened.read(name)
                LocalStore(folder).put(target.name, data, "application/octet-stream")
                written.append((str(target), len(data)))
    return written


def _refuse_existing(target: Path, force: bool) -> None:
    if target.exists() and not force:
        raise BadInput("target", str(target), "exists; use --force to replace it")


def _print_files(written: list[tuple[str, int]], as_json: bool) -> None:
    if as_json:
        print_json({"files": [{"file": name, "bytes": count} for name, count in written]})
        return
    total = size(sum(count for _, count in written))
    where = written[0][0] if len(written) == 1 else f"{len(written)} files in {Path(written[0][0]).parent}"
    print_line(f"{where} ({total})")


def _report(farm: Farm, as_json: bool, **options: Any) -> None:
    wanted = ReportOptions(**options)
    scope = wanted.scope
    made = farm.report(queue=scope.queue, batch=scope.batch, since=scope.since, price=wanted.price)
    print_report(made, wanted, as_json, lambda: _previews(farm, made.get("images", [])))


def _previews(farm: Farm, images: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    for image in images:
        # A picture of an image that was deleted since is left out.
        with suppress(Refused):
            yield farm.preview(image["job"])


_COMMANDS: dict[str, Callable[..., None]] = {
    "list": _list,
    "show": _show,
    "wait": _wait,
    "submit": _submit,
    "delete": _delete,
    "review": _review,
    "export": _export,
    "report": _report,
    **{verb: _change(verb) for verb in ("cancel", "pause", "resume", "retry")},
}
