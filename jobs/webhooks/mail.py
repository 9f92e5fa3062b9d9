"""The mail of a webhook: what has ended, with a link, the reasons of failures and the first image."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from infra.errors import BadSetting, StoreError
from infra.notify import PICTURE, mail
from jobs.farm import Farm, open_images
from jobs.page_templates import environment
from jobs.webhooks.message import message_lines
from render.errors import BadInput

_log = logging.getLogger(__name__)


def send_mail(farm: Farm, to: str, id: str, message: Mapping[str, Any], folder: str | None) -> None:
    """Send it by the farm's mail server; `folder` is that of the image that it shows.

    Raises `BadSetting` without a mail server, and `NotifyFailed`.
    """
    smtp_url = farm.settings.smtp_url.get_secret_value()
    if not smtp_url:
        fix = "is not set on this machine, so no mail is sent; use smtp://user:password@host:587"
        raise BadSetting("smtp_url", "", fix)
    picture = None if folder is None else _picture(farm, folder)
    lines = message_lines(message)
    page = (
        environment()
        .get_template("message.html")
        .render(message=message, lines=lines, picture=PICTURE if picture else None)
    )
    text = "\n".join([message["title"], "", *lines, *([message["url"]] if message["url"] else [])])
    mail(smtp_url, to, message["title"], text, page, picture=picture, id=id)


def _picture(farm: Farm, folder: str) -> bytes | None:
    """The thumbnail of an image; a mail goes without one rather than not at all."""
    # Not at module level: most messages have no picture, and its libraries take long to import.
    from PIL import UnidentifiedImageError

    from jobs.review.thumbnails import as_jpeg, thumbnail

    try:
        return as_jpeg(thumbnail(open_images(farm.settings).within(folder)))
    except (StoreError, BadInput, UnidentifiedImageError) as exc:
        _log.warning("a mail goes without its image: %s", exc)
        return None
