"""Access to the board: tokens, sessions, other sites, other host names, request bodies that are too large."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from click.testing import CliRunner

from infra.errors import BadSetting
from jobs.board.access import Access, TokensFile, check_address, new_token, read_access
from jobs.board.middleware import LARGEST_BODY
from jobs.cli.main import cli
from tests.jobs.board.conftest import OPERATOR, VIEWER
from tests.support.board import RunningBoard
from tests.support.cli import chorale


def test_addresses_other_than_loopback_need_tokens(tmp_path: Path) -> None:
    refused = chorale("serve", "--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 2
    assert refused.stderr.strip().count("\n") == 0 and "CHORALE_TOKENS_FILE" in refused.stderr
    check_address("::1", Access())
    for host in ("::", "10.0.0.11", "farm.example"):
        with pytest.raises(BadSetting):
            check_address(host, Access())


@pytest.mark.parametrize(
    ("text", "problem"),
    [("", "holds no token"), ("root=abcdefghijklmnopqrst", "line 1"), ("viewer=short-one", "16 characters")],
)
def test_a_tokens_file_that_cannot_be_used(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(text.replace("short-one", "short"))
    with pytest.raises(BadSetting, match=problem) as caught:
        read_access(str(file))
    assert "abcdefgh" not in str(caught.value) and "short" not in str(caught.value).replace("shorter", "")


def test_a_session_is_signed_and_holds_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"operator={OPERATOR}\nviewer={VIEWER}\n")
    access = read_access(str(file))
    assert (access.role_of(OPERATOR), access.role_of(VIEWER), access.role_of("x")) == (
        "operator",
        "viewer",
        None,
    )
    session = access.new_session("viewer")
    assert access.session_of(session.cookie) == session
    assert access.session_of(session.cookie.replace("viewer", "operator")) is None
    assert access.session_of("") is None and access.session_of("é.é") is None
    assert OPERATOR not in repr(access) and session.cookie not in repr(session)
    file.write_text("operator=another-token-altogether\n")
    assert read_access(str(file)).session_of(session.cookie) is None


def test_a_token_is_shown_once_and_kept_as_a_digest(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    words = ["token", "--role", "viewer", "--name", "anna", "--file", str(file), "--json"]
    made = [json.loads(CliRunner().invoke(cli, words).stdout) for _ in range(2)]
    first, second = (each["token"] for each in made)
    assert first != second and len(first) == 32 and file.stat().st_mode & 0o077 == 0
    text = file.read_text()
    assert first not in text and second not in text and text.splitlines() == [each["line"] for each in made]
    access = read_access(str(file))
    found = access.find(first)
    assert found is not None and (found.role, found.name) == ("viewer", "anna")
    # Neither the digest nor the line is a token.
    assert access.find(made[0]["line"]) is None and access.find(found.digest.hex()) is None
    assert access.find(f"sha256:{found.digest.hex()}") is None
    file.write_text("operator=sha256:1234567890\n")
    with pytest.raises(BadSetting, match="no SHA-256 in line 1"):
        read_access(str(file))


def test_sessions_need_more_than_the_file(tmp_path: Path) -> None:
    """A file of digests is no secret: whoever reads it must not be able to sign a session."""
    file = tmp_path / "tokens"
    file.write_text(new_token("operator", "anna")[1].line() + "\n")
    one, same, other = (read_access(str(file), secret) for secret in (b"1" * 32, b"1" * 32, b"2" * 32))
    session = one.new_session("operator", one.tokens[0])
    assert same.session_of(session.cookie) == session and same.name_of(session) == "anna"
    assert other.session_of(session.cookie) is None


def test_a_changed_tokens_file_is_read_without_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"operator={OPERATOR}\n")
    tokens = TokensFile.open(str(file), b"0" * 32)
    session = tokens.current().new_session("operator")
    assert tokens.current() is tokens.current()
    file.write_text(f"viewer={VIEWER}  # anna\n")
    assert tokens.current().role_of(OPERATOR) is None and tokens.current().role_of(VIEWER) == "viewer"
    assert tokens.current().session_of(session.cookie) is None
    for _ in range(2):
        file.write_text("")
        assert tokens.current().role_of(VIEWER) == "viewer", (
            "a file that is being written takes nobody's access"
        )
    assert caplog.text.count("holds no token") == 1
    file.unlink()
    assert tokens.current().role_of(VIEWER) == "viewer"


def test_a_reviewers_token_is_more_than_a_viewers(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"reviewer={VIEWER}  # anna\nviewer={VIEWER}\noperator={OPERATOR}\n")
    access = read_access(str(file))
    token = access.find(VIEWER)
    assert token is not None and (token.role, token.name) == ("reviewer", "anna")
    session = access.session_of(access.new_session(token.role, token).cookie)
    assert session is not None and (session.role, access.name_of(session)) == ("reviewer", "anna")


def test_tokens_have_roles_and_are_never_logged(locked: RunningBoard) -> None:
    job = {"prompt": "a vase", "size": "128x128"}
    assert locked.ask("/healthz").status == 200
    assert locked.ask("/api/v1/jobs").status == 401
    assert locked.ask("/api/v1/jobs", authorization="Bearer wrong-token-wrong-token").status == 401
    assert locked.ask("/api/v1/jobs", authorization=f"Bearer {VIEWER}").status == 200
    assert locked.ask("/api/v1/jobs", "POST", job, authorization=f"Bearer {VIEWER}").status == 403
    assert locked.ask("/api/v1/jobs", "POST", job, authorization=f"Bearer {OPERATOR}").status == 201
    sent = locked.ask("/jobs?state=done", accept="text/html")
    assert (sent.status, sent.headers["location"]) == (303, "/login?next=%2Fjobs%3Fstate%3Ddone")
    log = locked.log.read_text()
    assert not any(secret in log for secret in (OPERATOR, VIEWER, "wrong-token"))


def test_a_browser_logs_in_and_out(locked: RunningBoard) -> None:
    def log_in(token: str, then: str) -> tuple[int, str, str]:
        answer = locked.ask("/login", "POST", urlencode({"token": token, "next": then}).encode(), **_FORM)
        return answer.status, answer.headers.get("location", ""), answer.headers.get("set-cookie", "")

    assert log_in("no-such-token-at-all", "/jobs")[0] == 403
    assert log_in(VIEWER, "//evil.example/")[1] == "/"
    status, place, cookie = log_in(VIEWER, "/jobs")
    assert (status, place) == (303, "/jobs") and "HttpOnly" in cookie and "SameSite=Lax" in cookie
    page = locked.ask("/", cookie=cookie.partition(";")[0])
    assert page.status == 200 and b"/submit" not in page.body, "a viewer is offered nothing to change"
    refused = locked.ask("/submit", "POST", b"prompt=x", cookie=cookie.partition(";")[0], **_FORM)
    assert refused.status == 403


_FORM = {"content_type": "application/x-www-form-urlencoded"}


def test_other_names_and_other_sites_are_refused(quiet_board: RunningBoard) -> None:
    ask = quiet_board.ask
    before = ask("/api/v1/batches").json
    assert ask("/", host="rebound.example:8470").status == 421
    assert ask("/", host="localhost").status == 200
    job = {"prompt": "a vase", "size": "128x128"}
    for origin in ("https://evil.example", "http://[", "null"):
        assert ask("/api/v1/jobs", "POST", job, origin=origin).status == 403
    for host in (
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "10.0.0.1",
        "[",
    ):
        assert ask("/", host=host).status == 421
    assert ask("/api/v1/jobs", "POST", job, sec_fetch_site="cross-site").status == 403
    assert ask("/submit", "POST", b"prompt=x", **_FORM).status == 403, "a form without its CSRF token"
    assert ask("/api/v1/batches").json == before


def test_a_form_of_this_session_is_taken(quiet_board: RunningBoard) -> None:
    page = quiet_board.ask("/submit")
    cookie = page.headers["set-cookie"].partition(";")[0]
    token = re.search(rb'name="csrf_token" value="([\w-]+)"', page.body)
    assert token is not None
    form = urlencode({"csrf_token": token[1].decode(), "prompt": "a mug", "size": "100x100"}).encode()
    refused = quiet_board.ask("/submit", "POST", form, cookie=cookie, **_FORM)
    assert refused.status == 400 and b"multiple of 8" in refused.body and b"a mug</textarea>" in refused.body
    answer = quiet_board.ask("/submit", "POST", form.replace(b"100x100", b"128x128"), cookie=cookie, **_FORM)
    assert answer.status == 303
    job = answer.headers["location"].rpartition("/")[2]
    assert quiet_board.ask(f"/api/v1/jobs/{job}/cancel", "POST").json["state"] == "cancelled"


def test_bodies_are_limited_with_and_without_a_length(quiet_board: RunningBoard) -> None:
    assert quiet_board.ask("/api/v1/jobs", "POST", b"x" * (LARGEST_BODY + 1)).status == 413
    place = urlsplit(quiet_board.address)
    with socket.create_connection((place.hostname, place.port), 30) as raw:
        raw.sendall(b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n%s\r\n" % (1 << 16, b"x" * (1 << 16))
        try:
            for _ in range(LARGEST_BODY // (1 << 16) + 1):
                raw.sendall(chunk)
        except OSError:
            pass  # The server answered and closed the connection early.
        assert b" 413 " in raw.recv(1000).splitlines()[0]


@pytest.mark.parametrize("path", ["/", "/jobs", "/submit", "/api", "/static/board.js", "/nowhere"])
def test_every_answer_has_its_headers(quiet_board: RunningBoard, path: str) -> None:
    answer = quiet_board.ask(path, accept="text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    # Nothing from elsewhere, and nothing inline.
    text = answer.body.decode()
    if path != "/static/board.js":
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//", text)
        assert not re.search(r"<script(?![^>]*src)|<style| style=| on\w+=\"", text)
