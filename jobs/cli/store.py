"""`chorale store`: make a bucket ready, and see what works in it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from infra.settings import Settings, read_settings
from infra.store.base import Store
from infra.store.open import open_store
from jobs.cli.farm_options import print_json, print_table
from jobs.errors import UNREACHABLE
from jobs.farm import open_images

if TYPE_CHECKING:
    from infra.store.check import Finding


@click.group(
    epilog="Examples: chorale store check; chorale store init s3://studio/images; "
    "chorale store check s3://studio/images"
)
def store() -> None:
    """Make a store ready for images, and see what works in it."""


@store.command(epilog="Example: chorale store init s3://studio/images")
@click.argument("url", required=False)
@click.option("--origin", default="*", show_default=True, help="Web origin whose pages may show the images.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.pass_context
def init(context: click.Context, url: str | None, origin: str, as_json: bool) -> None:
    """Make the bucket of URL (or CHORALE_STORE_URL), its CORS rule, and one for aborted uploads.

    What is there already stays. A store may lack the rules; then this says so.
    """
    from infra.store.check import Finding, make_bucket
    from infra.store.s3 import S3Store

    opened = _open(url, read_settings({}))
    if isinstance(opened, S3Store):
        findings = make_bucket(opened, origin)
    else:
        findings = [Finding(name="folder", works=True, detail="is made at the first write")]
    _tell(context, opened, findings, as_json)


@store.command(epilog="Example: chorale store check s3://studio/images --json")
@click.argument("url", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.pass_context
def check(context: click.Context, url: str | None, as_json: bool) -> None:
    """Try out all that a farm does with the store of URL (or CHORALE_STORE_URL); exit 6 when it cannot.

    It writes into a folder of its own, chorale-check, and removes it again.
    """
    from infra.store.check import check_store

    opened = _open(url, read_settings({}))
    _tell(context, opened, check_store(opened), as_json)


def _open(url: str | None, settings: Settings) -> Store:
    if url is None:
        return open_images(settings)
    return open_store(url, settings, field="url")


def _tell(context: click.Context, opened: Store, findings: list[Finding], as_json: bool) -> None:
    usable = all(finding.works or not finding.needed for finding in findings)
    if as_json:
        document = {"store": opened.url(), "usable": usable}
        print_json(document | {"findings": [asdict(finding) for finding in findings]})
    else:
        rows = [(finding.name, _state(finding), finding.detail) for finding in findings]
        print_table(opened.url(), ("what", "state", "detail"), rows)
    if not usable:
        context.exit(UNREACHABLE)


def _state(finding: Finding) -> str:
    return "works" if finding.works else "missing" if finding.needed else "not there"
