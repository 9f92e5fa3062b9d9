"""Styles and scripts are kept by browsers, sent packed, and are as small as the first page wants them."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.database import Database
from infra.settings import Settings
from jobs.board.access import Access
from jobs.board.app import make_app
from jobs.board.board import Board
from jobs.board.static_files import static_url
from jobs.db.schema import upgrade
from jobs.farm import Farm
from tests.support.asgi import ask

FIRST_PAGE = 150_000
"""Bytes at most, without pictures."""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("static")
    database = Database(f"sqlite:///{folder / 'farm.db'}")
    upgrade(database)
    settings = Settings(store_url=(folder / "images").as_uri())
    yield make_app(Board(Farm(settings=settings, database=database, url=""), Access()))
    database.close()


def test_the_first_page_is_small_and_its_parts_are_kept(app: Any) -> None:
    page = ask(app, "/", headers={"accept": "text/html"})
    parts = set(re.findall(rb'(?:src|href)="(/static/[^"]+)"', page.body))
    assert len(parts) >= 4 and not any(b"openseadragon" in part for part in parts)
    weight = len(page.body)
    for part in parts:
        plain = ask(app, part.decode())
        packed = ask(app, part.decode(), headers={"accept-encoding": "br, gzip"})
        assert plain.status == packed.status == 200 and "content-encoding" not in plain.headers
        assert packed.headers["content-encoding"] == "gzip" and gzip.decompress(packed.body) == plain.body
        assert "immutable" in packed.headers["cache-control"] and packed.headers["vary"] == "accept-encoding"
        again = ask(app, part.decode(), headers={"if-none-match": plain.headers["etag"]})
        assert (again.status, again.body) == (304, b"")
        weight += len(packed.body)
    assert weight < FIRST_PAGE


def test_a_file_has_its_type_and_is_kept_under_its_own_address_only(app: Any) -> None:
    assert re.fullmatch(r"/static/board\.css\?v=[0-9a-f]{16}", static_url("board.css"))
    for path in ("/static/board.css", "/static/board.css?v=0123456789abcdef"):
        found = ask(app, path)
        assert found.headers["cache-control"] == "no-cache"
        assert found.headers["content-type"].startswith("text/css")
    assert ask(app, static_url("board.css"), "HEAD").status == 200


@pytest.mark.parametrize(
    "path", ["nothing.css", "vendor", "", "../app.py", "vendor/../../app.py", "%2e%2e/app.py"]
)
def test_nothing_else_is_served(app: Any, path: str) -> None:
    assert ask(app, f"/static/{path}").status == 404


def test_every_page_names_files_that_are_there() -> None:
    templates = Path(__file__).parents[3] / "jobs" / "board" / "templates"
    for template in templates.glob("*.html"):
        text = template.read_text(encoding="utf-8")
        assert '"/static/' not in text
        for name in re.findall(r"static\('([^']+)'\)", text):
            assert static_url(name)
