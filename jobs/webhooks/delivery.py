"""Delivery to a webhook: one signed POST, or one mail, which a follow-up tries again until it is taken.

Signed as Standard Webhooks (standardwebhooks.com) says, so that its libraries verify it: a receiver sees who
sends, when, and by `webhook-id` whether it has got the message before.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
import uuid
from typing import Any

from sqlalchemy import Connection, select

from infra.allowed_hosts import AllowedHosts
from infra.errors import NotifyFailed
from infra.settings import Settings
from jobs.db.audit import session_secret
from jobs.db.folders import image_folder
from jobs.db.follow_ups import FollowUp
from jobs.db.tables import webhooks
from jobs.farm import Farm
from jobs.thumbnail_links import thumbnail_link
from jobs.webhooks.mail import send_mail
from jobs.webhooks.message import body_of, first_image, make_message, make_test_message
from jobs.webhooks.registry import MAILTO, SECRET_PREFIX, find_webhook, shown_url

_TIMEOUT_S = 10.0


def deliver(farm: Farm, follow_up: FollowUp) -> str:
    """Tell one webhook, or send its mail. Raises `NotifyFailed`, so that it is tried again."""
    with farm.database.write() as connection:
        row = _row(connection, follow_up.payload["webhook"])
        if row is None:
            return "the webhook was removed"
        board, secret = farm.settings.board_url.rstrip("/"), session_secret(connection)

        def thumbnail(job: str) -> str | None:
            return thumbnail_link(board, secret, job) if board else None

        message = make_message(connection, row, follow_up.payload, board, thumbnail)
        job = first_image(connection, row, follow_up.payload) if row.kind == "mail" else None
        folder = None if job is None else image_folder(connection, job)
    _send(farm, row, follow_up.id, message, folder)
    return f"{shown_url(row.url)} was told: {message['title']}"


def send_test(farm: Farm, id: str) -> str:
    """Send a test message to one webhook now; returns where it went.

    Raises `BadInput` for an unknown one, `BadSetting` and `NotifyFailed`.
    """
    with farm.database.read() as connection:
        find_webhook(connection, id)
        row = _row(connection, id)
    message = make_test_message(farm.settings.board_url.rstrip("/"))
    _send(farm, row, f"test:{id}:{uuid.uuid4().hex[:12]}", message, None)
    return shown_url(row.url)


def _row(connection: Connection, id: str) -> Any:
    return connection.execute(select(webhooks).where(webhooks.c.id == id)).one_or_none()


def _send(farm: Farm, row: Any, id: str, message: dict[str, Any], folder: str | None) -> None:
    """Send a message by the way that its webhook wants; `folder` is that of its image, for a mail."""
    if row.kind == "mail":
        send_mail(farm, row.url.removeprefix(MAILTO), id, message, folder)
    else:
        _post(farm.settings, row, id, json.dumps(body_of(row.kind, message)).encode())


def signature(secret: str, id: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the HMAC-SHA256 of id, timestamp and body, in base64."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = f"{id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _post(settings: Settings, row: Any, id: str, body: bytes) -> None:
    import urllib3

    from infra.guarded_http import ForbiddenAddress, guarded_pool

    moment = int(time.time())
    headers = {
        "content-type": "application/json",
        "user-agent": "chorale",
        "webhook-id": id,
        "webhook-timestamp": str(moment),
        "webhook-signature": signature(row.secret, id, moment, body),
    }
    allowed = AllowedHosts(settings.webhook_hosts).may_connect
    pool = guarded_pool(allowed, timeout=_TIMEOUT_S, retries=False)
    place = shown_url(row.url)
    try:
        # No redirects: messages go to the address that was given, and to no place that its server names.
        # Only its status matters: what follows may have no end.
        answer = pool.request(
            "POST", row.url, body=body, headers=headers, redirect=False, preload_content=False
        )
        answer.close()
    except ForbiddenAddress as exc:
        fix = "name its network in CHORALE_WEBHOOK_HOSTS too, if that is meant"
        raise NotifyFailed(f"{place} is in a private network; {fix}") from exc
    except (urllib3.exceptions.HTTPError, ValueError, OSError) as exc:
        # Its text may hold the whole URL, which is a password where it is a chat channel's.
        raise NotifyFailed(f"{place} was not reached ({type(exc).__name__})") from None
    finally:
        pool.clear()
    if not 200 <= answer.status < 300:
        raise NotifyFailed(f"{place} answers with status {answer.status}")
