"""The `chorale` command. Its commands stand in files of their own; this one groups them under headings."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import click

from infra.logging import FORMATS, configure_logging
from jobs.cli.help import WIDTH, CommandGroup, examples
from jobs.cli.terminal import print_json, print_lines
from jobs.errors import BAD_INPUT, CANCELLED, KNOWN, exit_code
from render.errors import BadInput

_PATH_ERRORS = {
    getattr(errno, name)
    for name in ("EACCES", "EEXIST", "EISDIR", "ELOOP", "ENAMETOOLONG", "ENOENT", "ENOTDIR", "EPERM", "EROFS")
}
"""Errors of a path that somebody gave. A command names the option where it can; this is for what is left."""


class FarmGroup(CommandGroup):
    """The commands; with --url those that use a farm reach it over its board."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is not None and ctx.resilient_parsing:
            # A shell asks what may come next.
            from jobs.cli.completion import complete_names

            return complete_names(cmd_name, command)
        if command is None or not ctx.params.get("url"):
            return command
        from jobs.cli.remote import remote_command

        return remote_command(cmd_name, command)


@click.group(
    cls=FarmGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
    epilog=examples('chorale render "a red vase on a wooden table" --size 1536x1024 --seed 7 --out out/vase'),
)
@click.option("--log-format", type=click.Choice(FORMATS), default=None, help="Format of log records. [text]")
@click.option("-v", "--verbose", count=True, help="Log information too; -vv logs everything.")
@click.option("--url", envvar="CHORALE_URL", help="Use the farm whose board is there. [CHORALE_URL]")
@click.option(
    "--token-file",
    type=click.Path(),
    envvar="CHORALE_TOKEN_FILE",
    help="File with the token for --url. [CHORALE_TOKEN_FILE]",
)
@click.version_option(package_name="chorale")
def cli(log_format: str | None, verbose: int, url: str | None, token_file: str | None) -> None:
    """Render large diffusion images on many GPUs, one at a time or as a queue of jobs.

    `chorale COMMAND --help` describes a command and shows examples. With --url, `list`, `show`, `wait`,
    `submit`, `cancel`, `pause`, `resume`, `retry`, `delete`, `review`, `export` and `report` use a farm over
    its board.

    \b
    Exit codes:
      0 done, 2 bad input, 3 failed, 4 cancelled, 5 timed out, 6 a service is unreachable

    \b
    Shell completion (bash; zsh and fish likewise), in ~/.bashrc:
      eval "$(_CHORALE_COMPLETE=bash_source chorale)"
    """
    configure_logging(log_format, verbose)


_COMMANDS = {
    "One image": {
        "render": "jobs.cli.render:render",
        "upscale": "jobs.cli.upscale:upscale",
        "plan": "jobs.cli.plan:plan",
        "verify": "jobs.cli.verify:verify",
        "rerender": "jobs.cli.rerender:rerender",
        "export": "jobs.cli.export:export",
        "download": "jobs.cli.download:download_command",
        "schema": "jobs.cli.schema:schema",
    },
    "Jobs": {
        "submit": "jobs.cli.submit:submit_command",
        "list": "jobs.cli.jobs:list_command",
        "show": "jobs.cli.jobs:show",
        "watch": "jobs.cli.watch:watch",
        "wait": "jobs.cli.watch:wait",
        "logs": "jobs.cli.logs:logs",
        "cancel": "jobs.cli.jobs:cancel",
        "pause": "jobs.cli.jobs:pause",
        "resume": "jobs.cli.jobs:resume",
        "retry": "jobs.cli.jobs:retry",
        "priority": "jobs.cli.jobs:priority",
        "delete": "jobs.cli.delete:delete",
    },
    "Batches and queues": {
        "batches": "jobs.cli.queues:batches",
        "review": "jobs.cli.review:review",
        "queues": "jobs.cli.queues:queues",
        "estimate": "jobs.cli.report:estimate_command",
        "simulate": "jobs.cli.simulate:simulate",
        "report": "jobs.cli.report:report",
        "budget": "jobs.cli.budget:budget",
    },
    "Nodes and farm": {
        "up": "jobs.cli.nodes:up",
        "agent": "jobs.cli.nodes:agent",
        "nodes": "jobs.cli.nodes:nodes",
        "node": "jobs.cli.node:node",
        "drain": "jobs.cli.nodes:drain",
        "undrain": "jobs.cli.nodes:undrain",
        "serve": "jobs.cli.serve:serve",
        "model": "jobs.cli.model:model",
        "store": "jobs.cli.store:store",
        "gc": "jobs.cli.gc:gc",
        "migrate": "jobs.cli.migrate:migrate",
        "webhook": "jobs.cli.webhook:webhook",
        "audit": "jobs.cli.audit:audit",
        "token": "jobs.cli.audit:token",
        "doctor": "jobs.cli.doctor:doctor",
    },
    "Kubernetes": {
        "k8s": "jobs.cli.k8s:k8s",
    },
}
for _heading, _places in _COMMANDS.items():
    cli.add_section(_heading, _places)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with a documented code. A known error prints one sentence."""
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    try:
        _check_text(arguments)
        code = cli.main(arguments, prog_name="chorale", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as exc:
        _fail(exc.format_message(), BAD_INPUT, as_json)
    except (click.Abort, KeyboardInterrupt):
        _fail("cancelled", CANCELLED, as_json)
    except OSError as exc:
        if exc.filename is None or exc.errno not in _PATH_ERRORS:
            raise
        _fail(f"{os.fsdecode(exc.filename)[:300]}: {exc.strerror}; check the path", BAD_INPUT, as_json)
    except KNOWN as exc:
        _fail(str(exc), exit_code(exc), as_json, field=getattr(exc, "field", None))


def _check_text(arguments: list[str]) -> None:
    """Refuse an argument whose bytes are no UTF-8: no database, report or JSON could hold it."""
    for argument in arguments:
        if any(0xD800 <= ord(sign) <= 0xDFFF for sign in argument):
            raise BadInput("argument", argument, "is not UTF-8; write it in UTF-8, and rename such a file")


def _fail(text: str, code: int, as_json: bool, **more: Any) -> None:
    print_lines(f"chorale: {text}", error=True)
    if as_json:
        print_json({"error": text, "code": code} | {k: v for k, v in more.items() if v is not None})
    sys.exit(code)


if __name__ == "__main__":
    main()
