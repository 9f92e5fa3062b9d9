"""The webhooks of a farm: where messages go, about what, and in which form."""

from __future__ import annotations

import base64
import re
import secrets
import uuid
from dataclasses import dataclass
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from sqlalchemy import Connection, delete, func, insert, select

from infra.allowed_hosts import AllowedHosts
from infra.database import now
from jobs.db.queues import check_exists
from jobs.db.tables import webhooks
from render.errors import BadInput

Kind = Literal["json", "slack", "teams", "mail"]
Per = Literal["job", "batch", "queue"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PERS: tuple[Per, ...] = get_args(Per)
SECRET_PREFIX = "whsec_"
"""How secrets of Standard Webhooks begin."""
MAILTO = "mailto:"
"""How the URL of a mail address begins."""
_ADDRESS = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]{1,64}@(?P<host>[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*)", re.ASCII)
_LONGEST_URL = 2000
_MOST = 100
_KNOWN_HOSTS: tuple[tuple[str, Kind], ...] = (
    ("hooks.slack.com", "slack"),
    (".webhook.office.com", "teams"),
    (".logic.azure.com", "teams"),
    (".powerplatform.com", "teams"),
)


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """What somebody wants to be told, and where."""

    url: str
    kind: Kind
    per: Per
    queue: str | None = None
    batch: str | None = None
    owner: str | None = None


def wanted_webhook(
    url: str,
    *,
    kind: str | None,
    per: str | None,
    queue: str | None,
    batch: str | None,
    owner: str | None,
    hosts: str,
) -> Webhook:
    """A webhook from texts; `hosts` is the setting `webhook_hosts`. Raises `BadInput`.

    The URL may be a mail address. The kind follows from the host unless it is given; one for a batch is told
    per batch, others per queue.
    """
    if kind == "mail" or url.startswith(MAILTO) or _ADDRESS.fullmatch(url):
        url, found = _checked_address(url, kind, hosts), "mail"
    else:
        host = _checked_host(url, hosts)
        found = next((known for name, known in _KNOWN_HOSTS if host == name or host.endswith(name)), "json")
    chosen_kind = next((each for each in KINDS if each == (kind or found)), None)
    chosen_per = next((each for each in PERS if each == (per or ("batch" if batch else "queue"))), None)
    if chosen_kind is None:
        raise BadInput("kind", kind, f"is unknown; use one of {', '.join(KINDS)}")
    if chosen_per is None:
        raise BadInput("per", per, f"is unknown; use one of {', '.join(PERS)}")
    scope = {"queue": queue or None, "batch": batch or None, "owner": owner or None}
    return Webhook(url=url, kind=chosen_kind, per=chosen_per, **scope)


def add_webhook(connection: Connection, wanted: Webhook) -> dict[str, Any]:
    """Add a webhook; returns it with its secret, if it has one, which is told only now. Raises `BadInput`.

    It is told of what ends from now on.
    """
    check_exists(connection, wanted.batch, wanted.queue)
    if connection.execute(select(func.count()).select_from(webhooks)).scalar_one() >= _MOST:
        raise BadInput("url", shown_url(wanted.url), f"is one too many; remove one of the {_MOST} webhooks")
    secret = SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()
    id = uuid.uuid4().hex[:12]
    values = {name: getattr(wanted, name) for name in ("url", "kind", "per", "queue", "batch", "owner")}
    row = insert(webhooks).values(id=id, secret=secret, created=now(), told=now(), **values)
    connection.execute(row)
    # Nobody signs mail.
    return find_webhook(connection, id) | ({} if wanted.kind == "mail" else {"secret": secret})


def list_webhooks(connection: Connection) -> list[dict[str, Any]]:
    """All webhooks, oldest first, without their secrets; of a URL only what may be shown."""
    rows = connection.execute(select(webhooks).order_by(webhooks.c.created, webhooks.c.id))
    return [_shown(row) for row in rows]


def find_webhook(connection: Connection, id: str) -> dict[str, Any]:
    """One of them; raises `BadInput` for an unknown one."""
    row = connection.execute(select(webhooks).where(webhooks.c.id == id)).one_or_none()
    if row is None:
        raise BadInput("webhook", id[:40], "is unknown; chorale webhook list shows the known ones")
    return _shown(row)


def remove_webhook(connection: Connection, id: str) -> None:
    """Remove one; what is on its way to it is dropped. Raises `BadInput` for an unknown one."""
    find_webhook(connection, id)
    connection.execute(delete(webhooks).where(webhooks.c.id == id))


def shown_url(url: str) -> str:
    """The place of a URL: the rest of a chat channel's URL is its password. A mail address is shown whole."""
    if url.startswith(MAILTO):
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}/..."


def _checked_address(text: str, kind: str | None, hosts: str) -> str:
    """A mail address as a URL. Raises `BadInput`."""
    address = text.removeprefix(MAILTO).strip()
    form = _ADDRESS.fullmatch(address)
    if form is None or len(address) > 254:
        raise BadInput("url", text[:80], "is not one mail address; use e.g. anna@shop.example")
    if kind not in (None, "mail"):
        raise BadInput("kind", kind, "is for URLs; a mail address gets mail, leave it out")
    allowed = AllowedHosts(hosts)
    if allowed and not allowed.names(form["host"].lower()):
        raise BadInput("url", address, "is at a host that is not in CHORALE_WEBHOOK_HOSTS; list it there")
    return MAILTO + address


def _checked_host(url: str, hosts: str) -> str:
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as exc:
        raise BadInput("url", url[:80], "is not a URL; use https://...") from exc
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise BadInput("url", url[:80], "is not an http(s) URL; use https://...")
    if len(url) > _LONGEST_URL:
        raise BadInput("url", shown_url(url), f"has more than {_LONGEST_URL} characters; use a shorter one")
    allowed = AllowedHosts(hosts)
    if allowed and not (allowed.names(host) or allowed.names(f"{host}:{port}")):
        raise BadInput(
            "url", shown_url(url), "is on a host that is not in CHORALE_WEBHOOK_HOSTS; list it there"
        )
    return host


def _shown(row: Any) -> dict[str, Any]:
    names = ("id", "kind", "per", "queue", "batch", "owner", "created")
    return {"url": shown_url(row.url)} | {name: getattr(row, name) for name in names}
