"""The results of a batch, one JSON line for each row: output.jsonl and errors.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

from sqlalchemy import select

from jobs.db.folders import FINISHED_FOLDER
from jobs.db.tables import batches, entries, jobs
from jobs.farm import Farm, open_images
from render.errors import BadInput
from render.output.manifest import KEY


def write_results(farm: Farm, batch: str, folder: Path) -> dict[str, int]:
    """Write both files. Returns the number of rows in each. Raises `BadInput` for an unknown batch."""
    names = ("id", "digest", "state", "reason", "root")
    columns = [*(jobs.c[name] for name in names), FINISHED_FOLDER.label("folder")]
    rows = (
        select(entries.c.row, entries.c.custom_id, *columns)
        .join(jobs, jobs.c.id == entries.c.job)
        .where(entries.c.batch == batch)
        .order_by(entries.c.row)
    )
    counts = {"output": 0, "errors": 0}
    images = open_images(farm.settings)
    with farm.database.read() as connection:
        if connection.execute(select(batches.c.id).where(batches.c.id == batch)).first() is None:
            raise BadInput("batch", batch, "is unknown; chorale batches shows the known ones")
        folder.mkdir(parents=True, exist_ok=True)
        with (
            (folder / "output.jsonl").open("w", encoding="utf-8") as output,
            (folder / "errors.jsonl").open("w", encoding="utf-8") as errors,
        ):
            for row in connection.execute(rows):
                line = {"custom_id": row.custom_id, "row": row.row, "job": row.id, "digest": row.digest}
                if row.state == "done":
                    line |= {"root": row.root, "manifest": images.within(row.folder).url(KEY)}
                else:
                    line |= {"state": row.state, "reason": row.reason}
                file, name = (output, "output") if row.state == "done" else (errors, "errors")
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                counts[name] += 1
    return counts
