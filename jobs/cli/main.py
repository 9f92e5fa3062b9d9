"""The `chorale` command. Its commands stand in files of their own; this one groups them under headings."""

from __future__ import annotations

import sys
from typing import Any

import click

from infra.logging import FORMATS, configure_logging
from jobs.cli.doctor import doctor
from jobs.cli.download import download_command
from jobs.cli.export import export
from jobs.cli.gc import gc
from jobs.cli.help import WIDTH, CommandGroup, examples
from jobs.cli.jobs import cancel, list_command, pause, priority, resume, retry, show
from jobs.cli.k8s import k8s
from jobs.cli.logs import logs
from jobs.cli.migrate import migrate
from jobs.cli.nodes import agent, drain, nodes, undrain, up
from jobs.cli.plan import plan
from jobs.cli.queues import batches, queues
from jobs.cli.render import render
from jobs.cli.report import estimate_command, report
from jobs.cli.schema import schema
from jobs.cli.serve import serve
from jobs.cli.simulate import simulate
from jobs.cli.store import store
from jobs.cli.submit import submit_command
from jobs.cli.terminal import print_json
from jobs.cli.upscale import upscale
from jobs.cli.verify import verify
from jobs.cli.watch import wait, watch
from jobs.errors import BAD_INPUT, CANCELLED, KNOWN, exit_code
from jobs.formatting import printable


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
    epilog=examples('chorale render "a red vase on a wooden table" --size 1536x1024 --seed 7 --out out/vase'),
)
@click.option("--log-format", type=click.Choice(FORMATS), default=None, help="Format of log records. [text]")
@click.option("-v", "--verbose", count=True, help="Log information too; -vv logs everything.")
@click.version_option(package_name="chorale")
def cli(log_format: str | None, verbose: int) -> None:
    """Render large diffusion images on many GPUs, one at a time or as a queue of jobs.

    `chorale COMMAND --help` describes a command and shows examples.

    \b
    Exit codes:
      0 done, 2 bad input, 3 failed, 4 cancelled, 5 timed out, 6 a service is unreachable

    \b
    Shell completion (bash; zsh and fish likewise), in ~/.bashrc:
      eval "$(_CHORALE_COMPLETE=bash_source chorale)"
    """
    configure_logging(log_format, verbose)


cli.add_section("One image", render, upscale, plan, verify, export, download_command, schema)
cli.add_section(
    "Jobs",
    submit_command,
    list_command,
    show,
    watch,
    wait,
    logs,
    cancel,
    pause,
    resume,
    retry,
    priority,
)
cli.add_section("Batches and queues", batches, queues, estimate_command, simulate, report)
cli.add_section("Nodes and farm", up, agent, nodes, drain, undrain, serve, store, gc, migrate, doctor)
cli.add_section("Kubernetes", k8s)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with a documented code. A known error prints one sentence."""
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
    click.echo(f"chorale: {printable(text, keep=chr(10))}", err=True)
    if as_json:
        print_json({"error": text, "code": code} | {k: v for k, v in more.items() if v is not None})
    sys.exit(code)


if __name__ == "__main__":
    main()
