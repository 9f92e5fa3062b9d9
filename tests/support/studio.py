"""A farm without processes: jobs are placed, rendered and finished by hand, with small files beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from infra.database import Database
from infra.settings import read_settings
from infra.store.local import LocalStore
from jobs.cli.main import main
from jobs.db.claims import claim, make_ready
from jobs.db.deletion import Selection, find
from jobs.db.nodes import register
from jobs.db.outcomes import finish
from jobs.db.state_machine import change_state
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import attempts, jobs, renditions
from jobs.deletion import remove_rows, request
from jobs.farm import Farm
from jobs.scheduler.dispatcher import dispatch
from render.spec import Spec


@dataclass
class Studio:
    """A farm with a node of two slots, and files beside its jobs."""

    farm: Farm
    images: Path

    @property
    def database(self) -> Database:
        return self.farm.database

    def submit(self, *prompts: str, **options: Any) -> tuple[str, list[str]]:
        """Small images; returns the batch and the ids of its jobs."""
        items = [
            BatchItem(row=n, custom_id=f"A-{n}", spec=Spec(prompt=prompt, width=128, height=128))
            for n, prompt in enumerate(prompts, 1)
        ]
        given = JobOptions(**{"owner": "anna", "ranks": 1, **options})
        receipt = submit(self.database, items, "feed.csv", given)
        return receipt.batch, [job for _, job in receipt.jobs]

    def start(self) -> list[Any]:
        """Place what can be placed, and let it render."""
        begun = []
        for node, attempt, _ in dispatch(self.database, "n"):
            with self.database.write() as connection:
                assignment = claim(connection, attempt, node, "s")
                assert assignment is not None
                make_ready(connection, assignment, "x:1")
                change_state(connection, assignment.job, "placing", "rendering", "")
                earlier = update(attempts).where(attempts.c.id == attempt)
                connection.execute(earlier.values(created=attempts.c.created - 100))
                begun.append(assignment)
        return begun

    def render(self, *prompts: str) -> tuple[str, list[str]]:
        """Submit and finish; each image has a file of 1000 bytes, a log, and a rendition of its batch."""
        batch, ids = self.submit(*prompts)
        while begun := self.start():
            for assignment in begun:
                with self.database.write() as connection:
                    change_state(connection, assignment.job, "rendering", "publishing", "")
                    finish(connection, assignment, "f" * 64, 50.0)
        for row, job in enumerate(ids, 1):
            self.write(f"{self.folder(job)}/manifest.json", 1000)
            self.write(f"logs/{job}-0001-n.log", 10)
            self.write(f"renditions/{batch}/ebay/{row}.jpg", 100)
            with self.database.write() as connection:
                values = {"batch": batch, "row": row, "channel": "ebay", "job": job, "file": f"{row}.jpg"}
                connection.execute(renditions.insert().values(**values, made=1.0, bytes=100.0))
        return batch, ids

    def folder(self, job: str) -> str:
        with self.database.read() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job)).one()
        return str(row.folder or row.digest)

    def write(self, key: str, count: int) -> None:
        LocalStore(self.images).put(key, b"x" * count, "image/png")

    def files(self) -> set[str]:
        return {entry.key for entry in LocalStore(self.images).entries()}

    def delete(self, cancel: bool = False, **selection: Any) -> str:
        with self.database.read() as connection:
            found = find(connection, Selection(**selection))
        id = request(self.farm, found, by="me", audited_as="me on here", cancel=cancel)
        remove_rows(self.farm, found, id)
        return id

    def count(self, *tables: Any) -> list[int]:
        with self.database.read() as connection:
            return [
                connection.execute(select(func.count()).select_from(each)).scalar_one() for each in tables
            ]


def run(*words: str) -> int:
    """Run `chorale` in this process; returns its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0)


def studio_of_commands(folder: Path, environment: pytest.MonkeyPatch) -> Iterator[Studio]:
    """A studio that the commands of this process find too."""
    url = f"sqlite:///{folder / 'farm.db'}"
    environment.setenv("CHORALE_DATABASE_URL", url)
    environment.setenv("CHORALE_STORE_URL", str(folder / "images"))
    run("list")
    database = Database(url)
    with database.write() as connection:
        register(connection, "n", address="127.0.0.1", slots=2, device="cpu", vram_bytes=None)
    settings = read_settings({"store_url": str(folder / "images")})
    yield Studio(Farm(settings=settings, database=database, url=url), folder / "images")
    database.close()
