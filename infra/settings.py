"""Where the farm's parts are. Flags win over the environment, the environment over `chorale.toml`."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from infra.errors import BadSetting

FILE = "chorale.toml"
_PREFIX = "CHORALE_"


def redact_url(url: str) -> str:
    """What may be shown of a URL that nobody understands: what follows its scheme may hold a password."""
    scheme, there, _ = url.partition("://")
    return f"{scheme}://..." if there else "what it is set to"


def default_home() -> Path:
    """Where an embedded farm keeps its database, images and logs."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "chorale"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings; an empty one means the embedded default. Named after their variables."""

    database_url: str = ""
    broker_url: str = ""
    store_url: str = ""
    s3_endpoint_url: str = ""
    s3_checksums: str = ""
    s3_addressing: str = ""
    s3_region: str = ""
    s3_ca_bundle: str = ""
    s3_conditional_writes: str = ""
    """`no` for a store that does not heed If-None-Match; `chorale store check` tells."""
    store_patience_s: str = ""
    """Seconds for which a render waits for a store that is away."""
    model: str = ""
    node: str = ""
    address: str = ""
    metrics_address: str = ""
    """HOST:PORT of an agent's `/metrics`, or off."""
    tokens_file: str = ""
    report_webhook: str = ""
    report_mail: str = ""
    smtp_url: str = ""
    checkpoint_s: str = ""
    """Seconds between checkpoints."""
    warm_s: str = ""
    """Seconds for which a group without work keeps its model loaded."""
    stop_s: str = ""
    """Seconds that an agent which ends gives its ranks for their step and its checkpoint."""

    def seconds(self, name: str, default: float) -> float:
        """A setting that is a length of time; raises `BadSetting`."""
        text: str = getattr(self, name)
        try:
            value = float(text) if text else default
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise BadSetting(name, text, "is not a number of seconds; use e.g. 30")
        return value

    def __repr__(self) -> str:
        # URLs may hold passwords, and reprs end up in logs.
        given = [f.name for f in fields(self) if getattr(self, f.name)]
        return f"Settings(given: {', '.join(given) or 'none'})"


def read_settings(
    flags: Mapping[str, str | None], environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Settings:
    """Put the settings together; raises `BadSetting` for a file that cannot be read or an unknown key."""
    names = [f.name for f in fields(Settings)]
    values = _from_file((folder or Path.cwd()) / FILE, names)
    variables = os.environ if environment is None else environment
    values |= {
        name: variables[_PREFIX + name.upper()] for name in names if _PREFIX + name.upper() in variables
    }
    values |= {name: value for name, value in flags.items() if value}
    return Settings(**values)


def _from_file(path: Path, names: list[str]) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise BadSetting(str(path), "", f"cannot be read ({exc}); mend the file") from exc
    for name, value in document.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(names)}"
            raise BadSetting(name, f"in {path}", f"is unknown; {hint}")
        if not isinstance(value, str):
            raise BadSetting(name, value, f"in {path} is not text; put it in quotes")
    return document
