"""Messages to people: a webhook (JSON with a `text`, as chat services take it) and mail over SMTP."""

from __future__ import annotations

import hashlib
import json
import smtplib
import urllib.request
from collections.abc import Mapping
from email.message import EmailMessage
from email.utils import localtime, make_msgid
from http.client import HTTPException
from typing import Any
from urllib.parse import unquote, urlsplit

from infra.errors import BadSetting, NotifyFailed
from infra.settings import redact_url

_TIMEOUT_S = 10.0
_LARGEST_ANSWER = 1 << 16
_LONGEST_SUBJECT = 300
PICTURE = "cid:picture@chorale"
"""The address of a mail's picture in its page."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: reports go to the URL that was set, and to no place that its server names."""

    def redirect_request(self, *_: Any) -> None:
        return None


def post(url: str, text: str, document: Mapping[str, Any]) -> None:
    """POST `{"text": ..., "report": ...}`; raises `BadSetting` and `NotifyFailed`."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise BadSetting("report_webhook", redact_url(url), "is not an http(s) URL; use https://...")
    body = json.dumps({"text": text, "report": document}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_TIMEOUT_S) as answer:
            answer.read(_LARGEST_ANSWER)
    except (OSError, HTTPException) as exc:
        problem = f"the webhook did not accept the report ({exc}); check CHORALE_REPORT_WEBHOOK"
        raise NotifyFailed(problem) from exc


def mail(
    smtp_url: str,
    to: str,
    subject: str,
    text: str,
    page: str,
    *,
    picture: bytes | None = None,
    id: str | None = None,
) -> None:
    """Send one mail by `smtp://[user:password@]host[:port]` or `smtps://...`, as plain text and HTML.

    `picture` is a JPEG, which the page shows as `PICTURE`; a mail that is sent again has the same `id`, so
    that mail programs show it once. With a user name, STARTTLS is used before logging in. Raises `BadSetting`
    and `NotifyFailed`.
    """
    server = urlsplit(smtp_url)
    if server.scheme not in ("smtp", "smtps") or not server.hostname:
        raise BadSetting(
            "smtp_url", server.hostname, "is not a mail server URL; use smtp://user:password@host:587"
        )
    message = EmailMessage()
    message["From"] = unquote(server.username or "") or f"chorale@{server.hostname}"
    message["To"], message["Subject"] = to, subject_line(subject)
    message["Date"] = localtime()
    message["Message-ID"] = (
        make_msgid(domain=server.hostname) if id is None else _message_id(id, server.hostname)
    )
    message.set_content(_encodable(text))
    message.add_alternative(_encodable(page), subtype="html")
    shown = message.get_body(("html",))
    if picture is not None and shown is not None:
        cid = f"<{PICTURE.removeprefix('cid:')}>"
        shown.add_related(picture, "image", "jpeg", cid=cid, disposition="inline")
    kind = smtplib.SMTP_SSL if server.scheme == "smtps" else smtplib.SMTP
    try:
        with kind(server.hostname, server.port or 0, timeout=_TIMEOUT_S) as connection:
            if server.username:
                if server.scheme == "smtp":
                    connection.starttls()
                connection.login(unquote(server.username), unquote(server.password or ""))
            connection.send_message(message)
    except (OSError, smtplib.SMTPException) as exc:
        problem = f"the mail server did not accept the message ({exc}); check CHORALE_SMTP_URL"
        raise NotifyFailed(problem) from exc


def subject_line(text: str) -> str:
    """Text as the subject of a mail: one line, of a length that mail programs show.

    Names of batches and queues may hold line breaks, control characters and lone surrogates, which the
    headers of mails do not allow.
    """
    shown = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(shown.split())[:_LONGEST_SUBJECT]


def _message_id(id: str, host: str) -> str:
    return f"<{hashlib.sha256(id.encode()).hexdigest()[:32]}@{host}>"


def _encodable(text: str) -> str:
    """Lone surrogates, which no mail can hold, as question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
