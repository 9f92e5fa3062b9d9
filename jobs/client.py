"""A farm from another machine, over its board's REST API: neither a database nor a broker is needed.

    with Farm("https://farm.example", token) as farm:
        batch = farm.submit("a red vase", size="1024x768", queue="night")["batch"]
        farm.wait(batch=batch)
        farm.download(farm.rows(batch)[0]["id"], "vase.png")

Values go and come as the API's JSON has them, see /api on the board.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx2

from infra.store.local import LocalStore
from jobs.db.state_machine import ENDED
from jobs.errors import BoardUnreachable, JobCancelled, JobFailed, JobTimedOut, Refused
from jobs.formatting import counts_by_state
from render.errors import BadInput

_TIMEOUT_S = 60.0
_UPLOAD_TIMEOUT_S = 900.0
_POLL_S = 1.0
_PAGE = 1000
_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_log = logging.getLogger(__name__)


class Farm:
    """A farm at the address of its board, with a token. Opens nothing until used; close it at the end.

    Every call raises `Refused` for what the farm refuses, with its sentence, and `BoardUnreachable` where it
    does not answer.
    """

    def __init__(
        self,
        url: str,
        token: str = "",
        *,
        timeout_s: float = _TIMEOUT_S,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
        except ValueError as exc:
            raise BadInput("url", url[:200], "is not a URL; use https://farm.example") from exc
        if parts.scheme not in ("http", "https") or not host:
            raise BadInput("url", url[:200], "is not an http(s) URL; use https://farm.example")
        if token and parts.scheme == "http" and not _is_loopback(host):
            _log.warning("the token is sent to %s without encryption; use https", host)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self.url = url.rstrip("/")
        self._http = httpx2.Client(
            base_url=self.url, headers=headers, timeout=timeout_s, transport=transport, follow_redirects=False
        )

    @classmethod
    def with_token_file(cls, url: str, file: Path | None) -> Self:
        """With the token that a file holds; its first line, without anything after a blank."""
        if file is None:
            return cls(url)
        try:
            lines = file.read_text(encoding="utf-8").split()
        except (OSError, ValueError) as exc:
            raise BadInput("token_file", str(file), f"cannot be read ({exc}); check the path") from exc
        if not lines or not lines[0].isascii():
            raise BadInput("token_file", str(file), "holds no token; write what chorale token printed")
        return cls(url, lines[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(self, prompt: str, **fields: Any) -> dict[str, Any]:
        """Queue an image: fields of the spec, `queue`, `priority`, ...; returns `batch`, `job` and `jobs`."""
        return self._json("POST", "/api/v1/jobs", json={"prompt": prompt, **fields})

    def submit_batch(
        self, file: Path | None = None, *, rows: Sequence[Mapping[str, Any]] = (), name: str = "", **form: Any
    ) -> dict[str, Any]:
        """Queue the rows of a batch file, or rows as JSON has them; `form` as the API takes it.

        A file with bad rows raises `Refused`, whose `details` have them grouped as `errors`. Files that rows
        name are sent before, by `send_file`, and given as `files`: digests by name, as JSON.
        """
        if file is None:
            data = "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows).encode()
            sent = (name or "rows.jsonl", data)
        else:
            sent = (name or file.name, _read(file))
        given = {key: value for key, value in form.items() if value not in (None, "")}
        return self._json(
            "POST", "/api/v1/batches", data=given, files={"file": sent}, timeout=_UPLOAD_TIMEOUT_S
        )

    def send_file(self, file: str | os.PathLike[str]) -> str:
        """Send an image, a LoRA or the like, unless the farm has it already; returns its SHA-256."""
        path = Path(file)
        try:
            with path.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
                place = f"/api/v1/files/{digest}"
                if self._has(place):
                    return digest
                opened.seek(0)
                size = {"content-length": str(os.fstat(opened.fileno()).st_size)}
                self._json("PUT", place, content=opened, headers=size, timeout=_UPLOAD_TIMEOUT_S)
        except OSError as exc:
            raise BadInput("file", str(path), f"cannot be read ({exc.strerror}); check the path") from exc
        return digest

    def jobs(self, limit: int | None = None, **wanted: Any) -> Iterator[dict[str, Any]]:
        """Jobs, newest first: of a `state` or several, `queue`, `owner`, `batch`, or by words (`search`)."""
        after: str | None = None
        left = limit
        while left is None or left > 0:
            page = self.page_of_jobs(limit=min(_PAGE, left or _PAGE), after=after, **wanted)
            yield from page["jobs"]
            after = page["next"]
            left = None if left is None else left - len(page["jobs"])
            if after is None:
                return

    def page_of_jobs(self, **wanted: Any) -> dict[str, Any]:
        """One page of the list: `jobs`, `counts` by state, and `next`, the `after` of the next one."""
        given = {name: value for name, value in wanted.items() if value not in (None, "", ())}
        return self._json("GET", "/api/v1/jobs", params=given)

    def job(self, id: str) -> dict[str, Any]:
        """One job, by its id or the beginning of it: state, spec, history, what it waits for."""
        return self._json("GET", f"/api/v1/jobs/{_part(id)}")

    def batch(self, id: str) -> dict[str, Any]:
        """A batch: name, owner, and `jobs` by state."""
        found = self._json("GET", f"/api/v1/batches/{_part(id)}", params={"limit": 1})
        return {name: value for name, value in found.items() if name != "rows"}

    def rows(self, batch: str) -> list[dict[str, Any]]:
        """All rows of a batch, each with its custom_id and its job."""
        found: list[dict[str, Any]] = []
        while True:
            given = {"limit": _PAGE, "after": found[-1]["row"] if found else -1}
            page = self._json("GET", f"/api/v1/batches/{_part(batch)}", params=given)["rows"]
            found += page
            if len(page) < _PAGE:
                return found

    def wait(
        self, job: str | None = None, *, batch: str | None = None, timeout_s: float | None = None
    ) -> dict[str, int]:
        """Wait until a job, or all jobs of a batch, have ended; returns their number by state.

        Raises `JobFailed`, `JobCancelled` and `JobTimedOut`.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            counts = self._counts(job, batch)
            if all(state in ENDED for state, count in counts.items() if count):
                break
            if end is not None and time.monotonic() > end:
                raise JobTimedOut(f"timeout of {timeout_s:g} s reached: {counts_by_state(counts)}")
            time.sleep(_POLL_S)
        if counts.get("failed"):
            raise JobFailed(f"{counts_by_state(counts)}; chorale list --state failed shows the reasons")
        if counts.get("cancelled"):
            raise JobCancelled(counts_by_state(counts))
        return counts

    def change(self, verb: str, *jobs: str, batch: str | None = None, queue: str | None = None) -> int:
        """Cancel, pause, resume or retry jobs, or all of a batch or queue that can be; returns how many."""
        for job in jobs:
            self._json("POST", f"/api/v1/jobs/{_part(job)}/{_part(verb)}")
        if batch is None and queue is None:
            return len(jobs)
        given = {name: value for name, value in (("batch", batch), ("queue", queue)) if value is not None}
        return int(self._json("POST", f"/api/v1/jobs/{_part(verb)}", json=given)["jobs"])

    def delete(
        self,
        *jobs: str,
        batch: str | None = None,
        images: str = "",
        cancel: bool = False,
        dry_run: bool = False,
    ) -> list[dict[str, Any]]:
        """Delete jobs, a batch or some `images` of it, with their files; returns what each one comes to."""
        given = {"cancel": cancel, "dry_run": dry_run} | ({"images": images} if images else {})
        places = [f"/api/v1/jobs/{_part(job)}" for job in jobs]
        places += [] if batch is None else [f"/api/v1/batches/{_part(batch)}"]
        return [self._json("DELETE", place, params=given) for place in places]

    def reviews(self, batch: str, verdict: str | None = None) -> dict[str, Any]:
        """`counts` by verdict, and all `images` with verdict, votes, stars and flaws."""
        given: dict[str, Any] = {"limit": _PAGE} | ({"verdict": verdict} if verdict else {})
        path = f"/api/v1/batches/{_part(batch)}/review"
        found = self._json("GET", path, params=given)
        while found["next"] is not None:
            page = self._json("GET", path, params=given | {"after": found["next"]})
            found = page | {"images": found["images"] + page["images"]}
        return found

    def review(self, batch: str, images: Sequence[str], **reply: Any) -> None:
        """Say something of images, by custom ids: `verdict`, `reason`, `note`, `starred`, `reviewer`."""
        given = {name: value for name, value in reply.items() if value is not None}
        for start in range(0, len(images), _PAGE):
            body = {"images": list(images[start : start + _PAGE]), **given}
            self._json("POST", f"/api/v1/batches/{_part(batch)}/review", json=body)

    def reroll(self, batch: str, images: Sequence[str] | None = None, **changes: Any) -> list[dict[str, Any]]:
        """Render images again, the rejected ones unless they are named; returns what has replaced what."""
        given = {name: value for name, value in changes.items() if value is not None}
        body = given | ({} if images is None else {"images": list(images)})
        replaced: list[dict[str, Any]] = self._json(
            "POST", f"/api/v1/batches/{_part(batch)}/reroll", json=body
        )["images"]
        return replaced

    def report(self, **scope: Any) -> dict[str, Any]:
        """What was done: of a `queue` or `batch`, `since` seconds since the epoch, with a `price`."""
        given = {name: value for name, value in scope.items() if value is not None}
        return self._json("GET", "/api/v1/report", params=given)

    def renditions(self, batch: str) -> dict[str, Any]:
        """The files that the farm makes of a batch, by channel."""
        return self._json("GET", f"/api/v1/batches/{_part(batch)}/renditions")

    def ask_for(self, batch: str, *channels: str) -> None:
        """Have files made for channels."""
        body = {"channels": list(channels)}
        self._json("POST", f"/api/v1/batches/{_part(batch)}/renditions", json=body)

    def preview(self, job: str) -> bytes:
        """The newest preview of an image, finished or not, as WebP."""
        return self._request("GET", f"/api/v1/jobs/{_part(job)}/preview").content

    def download(self, job: str, file: str | os.PathLike[str]) -> int:
        """Write a finished image to a .png, .jpg or .webp file; returns its bytes."""
        target = Path(file)
        format = _FORMATS.get(target.suffix.lower())
        if format is None:
            raise BadInput("target", str(target), f"has no known ending; use one of {', '.join(_FORMATS)}")
        return self._save(f"/api/v1/jobs/{_part(job)}/image", target, {"format": format})

    def download_renditions(self, batch: str, channel: str, file: str | os.PathLike[str], **more: Any) -> int:
        """Write the files of a channel to a ZIP, with `all=True` what was not kept too; returns its bytes."""
        path = f"/api/v1/batches/{_part(batch)}/renditions/{_part(channel)}.zip"
        return self._save(path, Path(file), more)

    def _has(self, path: str) -> bool:
        try:
            self._request("GET", path)
        except Refused as exc:
            if exc.status == 404:
                return False
            raise
        return True

    def _counts(self, job: str | None, batch: str | None) -> dict[str, int]:
        if job is not None:
            return {self.job(job)["state"]: 1}
        if batch is None:
            raise BadInput("job", None, "is missing; give a job or a batch")
        counts: dict[str, int] = self.batch(batch)["jobs"]
        return counts

    def _save(self, path: str, target: Path, params: Mapping[str, Any]) -> int:
        data = self._request("GET", path, params=dict(params), timeout=_UPLOAD_TIMEOUT_S).content
        LocalStore(target.parent).put(target.name, data, "application/octet-stream")
        return len(data)

    def _json(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        answer = self._request(method, path, **more)
        try:
            found = answer.json()
        except ValueError as exc:
            raise BoardUnreachable(f"{self.url} answers with something else than JSON; check --url") from exc
        if not isinstance(found, dict):
            raise BoardUnreachable(f"{self.url} answers as no board of Chorale does; check --url")
        return found

    def _request(self, method: str, path: str, **more: Any) -> httpx2.Response:
        try:
            answer = self._http.request(method, path, **more)
        except httpx2.HTTPError as exc:
            reason = str(exc).strip() or type(exc).__name__
            raise BoardUnreachable(f"no answer from {self.url} ({reason})") from exc
        if answer.is_success:
            return answer
        raise _error(self.url, answer)


def _error(url: str, answer: httpx2.Response) -> Exception:
    """What an answer that is no success is raised as."""
    try:
        details = answer.json()
        text = str(details["error"])
    except (ValueError, KeyError, TypeError):
        details, text = {}, f"{url} answers with status {answer.status_code}"
    if answer.status_code == 429 or answer.status_code >= 500:
        return BoardUnreachable(text)
    if answer.is_redirect:
        place = answer.headers.get("location", "")[:200]
        return Refused(f"{url} leads to {place}; give that address", details)
    return Refused(text, details, answer.status_code)


def _part(text: str) -> str:
    """One part of a path, whatever is in it."""
    return quote(text, safe="") or "-"


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as exc:
        raise BadInput("batch", str(file), f"cannot be read ({exc.strerror}); check the path") from exc


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
