"""`chorale doctor`: what is here, what is missing, and how to get it."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from infra.broker import reach_broker, redis_executable
from infra.database import Database
from infra.errors import ServiceError, StoreError
from infra.settings import Settings, default_home, read_settings
from infra.store.open import check_reach, open_store


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked for. `needed` things that are missing make the doctor exit with 3."""

    name: str
    here: bool
    detail: str
    needed: bool = True


@click.command(epilog="Example: chorale doctor --json")
@click.option("--no-services", is_flag=True, help="This machine alone: ask no database, broker or store.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.pass_context
def doctor(context: click.Context, no_services: bool, as_json: bool) -> None:
    """Look at this machine and what it is set up with: Python, torch, devices, transports, model, disk, GPU
    metrics; the farm's database, broker and store. Exits with 3 when something that is needed is missing."""
    settings = read_settings({})
    findings = [check() for check in CHECKS]
    if not no_services:
        findings += [_asked(name, ask, settings) for name, ask in SERVICES.items()]
    healthy = all(finding.here or not finding.needed for finding in findings)
    if as_json:
        click.echo(json.dumps({"healthy": healthy, "findings": [asdict(finding) for finding in findings]}))
    else:
        Console().print(_table(findings))
    if not healthy:
        context.exit(3)


def _table(findings: list[Finding]) -> Table:
    table = Table()
    for name in ("what", "state", "detail"):
        table.add_column(name)
    for finding in findings:
        state = "[green]here" if finding.here else "[red]missing" if finding.needed else "[yellow]not here"
        table.add_row(finding.name, state, finding.detail)
    return table


def _python() -> Finding:
    return Finding(name="python", here=True, detail=f"{platform.python_version()}, {os.cpu_count()} cores")


def _torch() -> Finding:
    return Finding(name="torch", here=True, detail=f"{version('torch')}, diffusers {version('diffusers')}")


def _cuda() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding(name="cuda", here=False, needed=False, detail="no CUDA device: ranks run on CPU cores")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding(name="cuda", here=True, detail=", ".join(names))


def _driver() -> Finding:
    from infra.gpus import driver_version

    version = driver_version()
    missing = (
        "NVML is not here (it comes with NVIDIA's driver): metrics tell nothing of GPUs, only ranks' RSS"
    )
    detail = missing if version is None else f"NVML, driver {version}"
    return Finding(name="gpu metrics", here=version is not None, needed=False, detail=detail)


def _transports() -> Finding:
    import torch.distributed as dist

    there = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available()}
    listed = ", ".join(name for name, here in there.items() if here)
    return Finding(
        name="transports", here=there["gloo"], detail=listed or "install a torch with torch.distributed"
    )


def _model() -> Finding:
    from render.errors import RenderError
    from render.models.folder import read_model_info, resolve_model

    try:
        info = read_model_info(resolve_model("builtin"))
    except RenderError as exc:
        return Finding(name="built-in model", here=False, detail=str(exc))
    detail = f"{info.family}, native {info.native_size} px, digest {info.digest[:12]}"
    return Finding(name="built-in model", here=True, detail=detail)


def _disk() -> Finding:
    writable = os.access(Path.cwd(), os.W_OK)
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    detail = f"{free:.0f} GiB free here" if writable else "this folder is not writable; use --out elsewhere"
    return Finding(name="this folder", here=writable, detail=detail)


def _asked(name: str, ask: Callable[[Settings], str], settings: Settings) -> Finding:
    try:
        return Finding(name=name, here=True, detail=ask(settings))
    except (ServiceError, StoreError) as exc:
        return Finding(name=name, here=False, detail=str(exc))


def _database(settings: Settings) -> str:
    if not settings.database_url:
        return f"embedded: SQLite in {default_home()} (CHORALE_DATABASE_URL names another)"
    database = Database(settings.database_url)
    try:
        with database.read():
            return database.engine.url.render_as_string(hide_password=True)
    finally:
        database.close()


def _broker(settings: Settings) -> str:
    if not settings.broker_url:
        return f"embedded: {redis_executable()} (CHORALE_BROKER_URL names another)"
    return reach_broker(settings.broker_url)


def _store(settings: Settings) -> str:
    url = settings.store_url
    if not url:
        return f"embedded: {default_home() / 'images'} (CHORALE_STORE_URL names another)"
    try:
        check_reach(open_store(url, settings))
    except StoreError as exc:
        raise StoreError(f"{exc}; `chorale store check {url}` tells more") from exc
    return f"{url} (`chorale store check` tries all that we ask of it)"


CHECKS: tuple[Callable[[], Finding], ...] = (
    _python,
    _torch,
    _cuda,
    _driver,
    _transports,
    _model,
    _disk,
)
SERVICES: dict[str, Callable[[Settings], str]] = {"database": _database, "broker": _broker, "store": _store}
"""What is asked of each; the answer says where it is. They raise when it does not answer."""
