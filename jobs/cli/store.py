"""`chorale store`: create and test the bucket of a farm."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from infra.settings import Settings, read_settings
from infra.store.base import Store
from infra.store.open import open_store
from jobs.cli.help import CommandGroup, examples
from jobs.cli.terminal import print_json, print_table
from jobs.errors import UNREACHABLE
from jobs.farm import open_images

if TYPE_CHECKING:
    from infra.store.check import Finding


@click.group(
    cls=CommandGroup,
    epilog=examples(
        "chorale store check",
        "chorale store init s3://studio/images",
        "chorale store check s3://studio/images",
    ),
)
def store() -> None:
    """Create a bucket for images, or test a store."""


@store.command(epilog=examples("chorale store init s3://studio/images"))
@click.argument("url", required=False)
@click.option("--origin", default="*", show_default=True, help="Web origin that may read the images (CORS).")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.pass_context
def init(context: click.Context, url: str | None, origin: str, as_json: bool) -> None:
    """Create a bucket, with a CORS rule and a lifecycle rule that removes aborted uploads.

    URL defaults to CHORALE_STORE_URL. Existing objects and rules stay. The rules are optional: the output
    says which of them the store does not support.
    """
    from infra.store.check import Finding, make_bucket
    from infra.store.s3 import S3Store

    opened = _open(url, read_settings({}))
    if isinstance(opened, S3Store):
        findings = make_bucket(opened, origin)
    else:
        findings = [Finding(name="folder", works=True, detail="is created at the first write")]
    _report(context, opened, findings, as_json)


@store.command(epilog=examples("chorale store check s3://studio/images"))
@click.argument("url", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.pass_context
def check(context: click.Context, url: str | None, as_json: bool) -> None:
    """Test every operation that a farm needs from a store. Exit code 6 when one fails.

    URL defaults to CHORALE_STORE_URL. The test writes into the folder chorale-check and deletes it.
    """
    from infra.store.check import check_store

    opened = _open(url, read_settings({}))
    _report(context, opened, check_store(opened), as_json)


def _open(url: str | None, settings: Settings) -> Store:
    if url is None:
        return open_images(settings)
    return open_store(url, settings, field="url")


def _report(context: click.Context, opened: Store, findings: list[Finding], as_json: bool) -> None:
    usable = all(finding.works or not finding.needed for finding in findings)
    if as_json:
        document = {"store": opened.url(), "usable": usable}
        print_json(document | {"findings": [asdict(finding) for finding in findings]})
    else:
        rows = [(finding.name, _state(finding), finding.detail) for finding in findings]
        print_table(opened.url(), ("operation", "state", "detail"), rows)
    if not usable:
        context.exit(UNREACHABLE)


def _state(finding: Finding) -> str:
    return "OK" if finding.works else "failed" if finding.needed else "unavailable"
