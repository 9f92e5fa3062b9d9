"""`chorale doctor`: check this machine and the services of the farm."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import click

from infra.broker import reach_broker, redis_executable
from infra.database import Database
from infra.errors import ServiceError, StoreError
from infra.settings import Settings, default_home, read_settings
from infra.store.open import check_reach, open_store
from jobs.cli.help import examples
from jobs.cli.terminal import print_json, print_table
from jobs.formatting import plural, size
from render.launch.shared_memory import (
    MORE_SHARED_MEMORY,
    SHARED_MEMORY,
    SHARED_MEMORY_BYTES,
    shared_memory_bytes,
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check. A missing thing that is `needed` makes the command exit with 3."""

    name: str
    here: bool
    detail: str
    needed: bool = True


@click.command(epilog=examples("chorale doctor", "chorale doctor --no-services"))
@click.option("--no-services", is_flag=True, help="Check this machine only: no database, broker or store.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.pass_context
def doctor(context: click.Context, no_services: bool, as_json: bool) -> None:
    """Check this machine and the services of the farm. Exit code 3 when something needed is missing.

    Checks Python, torch, devices, GPU metrics, transports, the built-in model, the current folder and shared
    memory; and the database, broker and store of the farm.
    """
    settings = read_settings({})
    findings = [check() for check in CHECKS]
    if not no_services:
        findings += [_service(name, check, settings) for name, check in SERVICES.items()]
    healthy = all(finding.here or not finding.needed for finding in findings)
    if as_json:
        print_json({"healthy": healthy, "findings": [asdict(finding) for finding in findings]})
    else:
        rows = [(finding.name, _state(finding), finding.detail) for finding in findings]
        print_table("OK" if healthy else "Something is missing", ("check", "state", "detail"), rows)
    if not healthy:
        context.exit(3)


def _state(finding: Finding) -> str:
    return "OK" if finding.here else "missing" if finding.needed else "unavailable"


def _python() -> Finding:
    return Finding(
        name="python", here=True, detail=f"{platform.python_version()}, {plural(os.cpu_count() or 1, 'core')}"
    )


def _torch() -> Finding:
    return Finding(name="torch", here=True, detail=f"{version('torch')}, diffusers {version('diffusers')}")


def _cuda() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding(name="cuda", here=False, needed=False, detail="no CUDA device; ranks run on CPU cores")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding(name="cuda", here=True, detail=", ".join(names))


def _driver() -> Finding:
    from render.launch.gpus import driver_version

    version = driver_version()
    missing = "NVML is not installed (NVIDIA's driver brings it); there are no GPU metrics"
    detail = missing if version is None else f"NVML, driver {version}"
    return Finding(name="gpu metrics", here=version is not None, needed=False, detail=detail)


def _transports() -> Finding:
    import torch.distributed as dist

    available = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available()}
    listed = ", ".join(name for name, here in available.items() if here)
    detail = listed or "install a torch with torch.distributed"
    return Finding(name="transports", here=available["gloo"], detail=detail)


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
    free = size(shutil.disk_usage(Path.cwd()).free)
    detail = f"{free} free" if writable else "not writable; use --out with another folder"
    return Finding(name="current folder", here=writable, detail=detail)


def _shared_memory() -> Finding:
    """Containers have 64 MiB by default, which NCCL fills: ranks then die of a bus error."""
    total = shared_memory_bytes()
    if total is None:
        return Finding(name="shared memory", here=False, needed=False, detail=f"{SHARED_MEMORY} is missing")
    detail = f"{size(total)} in {SHARED_MEMORY}"
    if total >= SHARED_MEMORY_BYTES:
        return Finding(name="shared memory", here=True, detail=detail)
    from render.launch.gpus import visible_gpus

    detail += f"; enough for CPU ranks, but GPUs need {size(SHARED_MEMORY_BYTES)}: {MORE_SHARED_MEMORY}"
    return Finding(name="shared memory", here=not visible_gpus(), needed=False, detail=detail)


def _service(name: str, check: Callable[[Settings], str], settings: Settings) -> Finding:
    try:
        return Finding(name=name, here=True, detail=check(settings))
    except (ServiceError, StoreError) as exc:
        return Finding(name=name, here=False, detail=str(exc))


def _database(settings: Settings) -> str:
    url = settings.database_url.get_secret_value()
    if not url:
        return f"embedded: SQLite in {default_home()} (set CHORALE_DATABASE_URL for another)"
    database = Database(url)
    try:
        with database.read():
            return database.shown_url
    finally:
        database.close()


def _broker(settings: Settings) -> str:
    url = settings.broker_url.get_secret_value()
    if not url:
        return f"embedded: {redis_executable()} (set CHORALE_BROKER_URL for another)"
    return reach_broker(url)


def _store(settings: Settings) -> str:
    url = settings.store_url
    if not url:
        return f"embedded: {default_home() / 'images'} (set CHORALE_STORE_URL for another)"
    try:
        check_reach(open_store(url, settings))
    except StoreError as exc:
        raise StoreError(f"{exc}; `chorale store check {url}` shows more") from exc
    return f"{url} (`chorale store check` tests every operation)"


CHECKS: tuple[Callable[[], Finding], ...] = (
    _python,
    _torch,
    _cuda,
    _driver,
    _transports,
    _model,
    _disk,
    _shared_memory,
)
SERVICES: dict[str, Callable[[Settings], str]] = {"database": _database, "broker": _broker, "store": _store}
"""Each check returns where its service is, and raises when it cannot be reached."""
