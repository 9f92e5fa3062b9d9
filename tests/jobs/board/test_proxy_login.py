"""Logins that a proxy has done: whom its headers are believed, and what its groups may do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from infra.database import Database
from infra.errors import BadSetting
from infra.settings import Settings, read_settings
from jobs.board.access import Access, check_address, proxy_access, read_access
from jobs.board.app import make_app
from jobs.board.board import Board
from jobs.board.proxy_login import ProxyLogin
from jobs.board.server import behind_proxies
from jobs.cli.main import main
from jobs.db.audit import list_acts
from jobs.db.schema import upgrade
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.farm import Farm
from render.spec import Spec
from tests.support.asgi import ask

PROXY = "10.2.0.7"
GIVEN = {
    "login_header": "X-Forwarded-User",
    "login_groups_header": "X-Forwarded-Groups",
    "login_proxies": "10.2.0.0/24, fd00::7",
    "login_roles": "operator=ops, role:admin; reviewer=art; viewer=user:zoe@shop.example",
}
TOKEN = "o" * 30


def settings_of(**changes: str) -> Settings:
    return read_settings(GIVEN | changes)


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    database = Database(f"sqlite:///{tmp_path / 'farm.db'}")
    upgrade(database)
    settings = settings_of(store_url=(tmp_path / "images").as_uri())
    yield Farm(settings=settings, database=database, url="")
    database.close()


def app_of(farm: Farm, access: Access | None = None) -> Any:
    proxy = ProxyLogin.of(farm.settings)
    return behind_proxies(make_app(Board(farm, access or proxy_access(b"s" * 32), proxy=proxy)), proxy)


def of(user: str, *groups: str) -> dict[str, str]:
    return {"accept": "text/html", "x-forwarded-user": user, "x-forwarded-groups": ",".join(groups)}


def submitted(farm: Farm) -> str:
    item = BatchItem(row=1, custom_id="A", spec=Spec(prompt="a vase", width=64, height=64))
    return submit(farm.database, [item], "feed.csv", JobOptions(owner="anna")).jobs[0][1]


@pytest.mark.parametrize(
    ("user", "groups", "read", "changed"),
    [
        ("anna@shop.example", ("ops",), 200, 200),
        ("anna@shop.example", ("other", "role:admin"), 200, 200),
        ("ben@shop.example", ("art",), 200, 403),
        ("zoe@shop.example", (), 200, 403),
        ("max@shop.example", ("other",), 403, 403),
        ("ops", (), 403, 403),
        ("max@shop.example", ("*",), 403, 403),
        ("max@shop.example", ("user:zoe@shop.example",), 200, 403),
    ],
)
def test_groups_give_roles(farm: Farm, user: str, groups: tuple[str, ...], read: int, changed: int) -> None:
    app, job, headers = app_of(farm), submitted(farm), of(user, *groups)
    assert ask(app, "/jobs", headers=headers, client=PROXY).status == read
    assert ask(app, f"/api/v1/jobs/{job}/pause", "POST", headers=headers, client=PROXY).status == changed


def test_the_headers_are_refused_from_other_addresses_whatever_else_is_there(
    farm: Farm, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"operator={TOKEN}\n")
    app = app_of(farm, read_access(str(tokens), b"s" * 32))
    bearer = {"authorization": f"Bearer {TOKEN}"}
    assert ask(app, "/api/v1/jobs", headers=bearer, client="10.9.0.1").status == 200, "tokens go on working"
    for headers in (of("anna", "ops"), of("anna", "ops") | bearer, {"x-forwarded-groups": "ops"}):
        for client in ("10.9.0.1", "127.0.0.1", "10.2.1.7", ""):
            refused = ask(app, "/api/v1/jobs", headers=headers, client=client)
            assert refused.status == 403 and b"from the proxy alone" in refused.body
    # Whoever comes through another proxy on this machine may say so, and is believed nothing else.
    forged = of("anna", "ops") | {"x-forwarded-for": PROXY}
    assert ask(app, "/jobs", headers=forged, client="127.0.0.1").status == 403
    assert ask(app, "/jobs", headers=of("anna", "ops"), client=f"::ffff:{PROXY}").status == 200
    assert ask(app, "/jobs", headers=of("anna", "ops"), client="fd00::7").status == 200


def test_without_the_header_nobody_is_logged_in(farm: Farm) -> None:
    app = app_of(farm)
    for headers in ({"accept": "text/html"}, of("", "ops"), of("  ", "ops")):
        assert ask(app, "/jobs", headers=headers, client=PROXY).status == 303
    assert ask(app, "/api/v1/jobs", client=PROXY).status == 401
    assert ask(app, "/healthz", client="10.9.0.1").status == 200


def test_a_session_of_the_proxys_user_is_good_for_nothing_without_the_proxy(farm: Farm) -> None:
    app, job = app_of(farm), submitted(farm)
    headers = of("anna@shop.example", "ops")
    page = ask(app, f"/jobs/{job}", headers=headers, client=PROXY)
    cookie = page.headers["set-cookie"].partition(";")[0]
    token = re.search(rb'name="csrf_token" value="([\w-]+)"', page.body)
    assert token is not None and b"anna@shop.example</span>" in page.body and b"Log out" not in page.body
    body = urlencode({"verb": "pause", "csrf_token": token[1].decode()}).encode()
    form = {"cookie": cookie, "content-type": "application/x-www-form-urlencoded"}
    for client in ("10.9.0.1", PROXY):
        assert ask(app, f"/jobs/{job}/do", "POST", body, form, client).status == 401
    assert ask(app, "/jobs", headers=form | {"accept": "text/html"}, client=PROXY).status == 303
    # Nor is it another user's, or that of one who has lost the group.
    assert ask(app, f"/jobs/{job}/do", "POST", body, of("ben", "ops") | form, PROXY).status == 403
    assert (
        ask(app, f"/jobs/{job}/do", "POST", body, of("anna@shop.example", "art") | form, PROXY).status == 403
    )
    assert ask(app, f"/jobs/{job}/do", "POST", body, headers | form, PROXY).status == 303
    other = headers | form | {"sec-fetch-site": "cross-site"}
    assert ask(app, f"/jobs/{job}/do", "POST", body, other, PROXY).status == 403


def test_what_users_do_is_audited_by_their_names_and_addresses(farm: Farm) -> None:
    app, job = app_of(farm), submitted(farm)
    headers = of("anna@shop.example", "ops") | {"x-forwarded-for": "203.0.113.9"}
    assert ask(app, f"/jobs/{job}", headers=headers, client=PROXY).status == 200
    api = {name: value for name, value in headers.items() if name != "accept"}
    assert ask(app, f"/api/v1/jobs/{job}/pause", "POST", headers=api, client=PROXY).status == 200
    with farm.database.read() as connection:
        acts = [(act["action"], act["who"]) for act in list_acts(connection, 10)]
    who = "the board: anna@shop.example at 203.0.113.9"
    assert acts == [("pause", who), ("log in", who)]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"login_proxies": ""}, "login_proxies:  is missing"),
        ({"login_roles": " "}, "login_roles:  is missing"),
        ({"login_proxies": "proxy.local"}, "is no address"),
        ({"login_proxies": "10.2.0.7, 0.0.0.0/0"}, "is every address"),
        ({"login_roles": "boss=ops"}, "is wrong; write"),
        ({"login_roles": "operator"}, "is wrong; write"),
        ({"login_roles": "operator="}, "is wrong; write"),
        ({"login_header": "X User"}, "is no name of a header"),
        ({"login_header": ""}, "needs login_header"),
    ],
)
def test_settings_that_are_wrong_end_the_board_before_it_begins(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    sentence: str,
) -> None:
    with pytest.raises(BadSetting, match=re.escape(sentence)):
        # An empty flag is none, so these come as the environment has them.
        ProxyLogin.of(Settings(**(GIVEN | changes)))  # type: ignore[arg-type]
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for name, value in (GIVEN | changes).items():
        monkeypatch.setenv(f"CHORALE_{name.upper()}", value)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--host", "0.0.0.0", "--port", "0"])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.count("\n") == 1


def test_a_board_behind_a_proxy_may_be_reached_by_others_and_lets_nobody_in_by_itself() -> None:
    access = proxy_access(b"s" * 32)
    assert not access.open
    check_address("0.0.0.0", access)
    with pytest.raises(BadSetting):
        check_address("0.0.0.0", Access())
    first, second = proxy_access(b"s" * 32), proxy_access(b"t" * 32)
    cookie = access.new_session("operator", digest="@x").cookie
    assert first.session_of(cookie) is not None and second.session_of(cookie) is None
