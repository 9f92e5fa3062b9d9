"""The `chorale` command: parses, calls, formats. A file per group of verbs."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from jobs.cli.doctor import doctor
from jobs.cli.download import download_command
from jobs.cli.export import export
from jobs.cli.gc import gc
from jobs.cli.jobs import cancel, list_command, pause, priority, resume, retry, show
from jobs.cli.k8s import k8s
from jobs.cli.logs import logs
from jobs.cli.migrate import migrate
from jobs.cli.nodes import agent, drain, nodes, undrain, up
from jobs.cli.plan import plan
from jobs.cli.queues import batches, queues
from jobs.cli.render import render
from jobs.cli.report import estimate_command, report
from jobs.cli.serve import serve
from jobs.cli.store import store
from jobs.cli.submit import submit_command
from jobs.cli.upscale import upscale
from jobs.cli.verify import verify
from jobs.cli.watch import wait, watch
from jobs.errors import BAD_INPUT, CANCELLED, KNOWN, exit_code


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="chorale")
def cli() -> None:
    """Render diffusion images with many ranks.

    \b
    Exit codes: 0 done, 2 bad input, 3 failed, 4 cancelled, 5 timed out, 6 a service unreachable.

    \b
    Words are completed with Tab after this line in ~/.bashrc (zsh and fish likewise):
      eval "$(_CHORALE_COMPLETE=bash_source chorale)"

    \b
    Example:
      chorale render "a red vase on a wooden table" --size 1536x1024 --seed 7 --out out/vase
    """


_ONE_IMAGE = (render, upscale, plan, verify, export, download_command, doctor, k8s)
_JOBS = (submit_command, list_command, show, watch, wait, logs, cancel, pause, resume, retry, priority)
_FARM = (
    queues,
    batches,
    estimate_command,
    report,
    nodes,
    drain,
    undrain,
    agent,
    up,
    serve,
    store,
    gc,
    migrate,
)
for _command in (*_ONE_IMAGE, *_JOBS, *_FARM):
    cli.add_command(_command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with a documented code; users' mistakes give one sentence."""
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    try:
        code = cli.main(arguments, prog_name="chorale", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as exc:
        _fail(exc.format_message(), BAD_INPUT, as_json)
    except (click.Abort, KeyboardInterrupt):
        _fail("cancelled", CANCELLED, as_json)
    except KNOWN as exc:
        _fail(str(exc), exit_code(exc), as_json, field=getattr(exc, "field", None))


def _fail(text: str, code: int, as_json: bool, **more: Any) -> None:
    click.echo(f"chorale: {text}", err=True)
    if as_json:
        click.echo(
            json.dumps({"error": text, "code": code} | {k: v for k, v in more.items() if v is not None})
        )
    sys.exit(code)


if __name__ == "__main__":
    main()
