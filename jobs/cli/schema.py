"""`chorale schema`: the JSON schema of spec files, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from jobs.cli.help import examples
from jobs.cli.terminal import print_lines
from render.errors import BadInput
from render.spec.schema import batch_schema, spec_schema


@click.command(
    epilog=examples("chorale schema --out spec.schema.json", "chorale schema --batch --out batch.schema.json")
)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Write to a file. [stdout]")
@click.option("--batch", is_flag=True, help="The schema of batch files in yaml instead.")
def schema(out: Path | None, batch: bool) -> None:
    """Print the JSON schema of spec files (draft 2020-12).

    An editor with the YAML language server completes and checks a spec file that starts with this line:

    \b
      # yaml-language-server: $schema=spec.schema.json
    """
    text = schema_text(batch_schema() if batch else spec_schema())
    if out is None:
        print_lines(text, end="")
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise BadInput("out", str(out), f"cannot be written ({exc.strerror}); check the path") from exc


def schema_text(document: dict[str, Any]) -> str:
    """A schema as it is printed and committed."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
