"""Where the farm's services are. Flags win over the environment, the environment over `chorale.toml`."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from infra.errors import BadSetting

FILE = "chorale.toml"
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def redact_url(url: str) -> str:
    """What may be shown of a URL of an unknown kind: everything after its scheme may be a password."""
    scheme, there, _ = url.partition("://")
    return f"{scheme}://..." if there else "(hidden)"


def default_home() -> Path:
    """Where an embedded farm keeps its database, images and logs."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "chorale"


class Settings(BaseSettings):
    """All settings, named after their variables (`CHORALE_...`); an empty one means the embedded default.

    URLs that may hold passwords are `SecretStr`, so that no repr, log or traceback shows them.
    """

    model_config = SettingsConfigDict(
        env_prefix="CHORALE_",
        env_ignore_empty=True,
        toml_file=FILE,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    database_url: SecretStr = SecretStr("")
    broker_url: SecretStr = SecretStr("")
    store_url: str = ""
    s3_endpoint_url: str = ""
    s3_checksums: str = ""
    s3_addressing: str = ""
    s3_region: str = ""
    s3_ca_bundle: str = ""
    s3_conditional_writes: str = ""
    """`no` for a store that ignores If-None-Match; `chorale store check` reports it."""
    store_patience_s: Seconds = 120.0
    """Seconds for which a render waits for a store that is unreachable."""
    model: str = ""
    node: str = ""
    tags: str = ""
    """Tags of this node, separated by commas."""
    address: str = ""
    metrics_address: str = ""
    """HOST:PORT of an agent's `/metrics`, or off."""
    tokens_file: str = ""
    group_secret: SecretStr = SecretStr("")
    """Shared by the machines of `chorale render --nnodes`; a farm makes one for every attempt."""
    image_hosts: str = ""
    """Hosts (and s3://BUCKET) from which rows of a batch may name images, separated by commas."""
    image_max_mib: Annotated[float, Field(gt=0, le=4096, allow_inf_nan=False)] = 64.0
    """Largest image that is downloaded for a row, in MiB."""
    upload_max_mib: Annotated[float, Field(gt=0, le=65536, allow_inf_nan=False)] = 2048.0
    """Largest file that a program may send to the board, in MiB."""
    login_header: str = ""
    """Header in which a proxy names the user of the board whom it has logged in."""
    login_groups_header: str = ""
    """Header with the user's groups, separated by commas."""
    login_proxies: str = ""
    """Addresses and networks of the proxy, separated by commas."""
    login_roles: str = ""
    """`operator=GROUP,GROUP; reviewer=GROUP; viewer=*`; `user:NAME` is a user, `*` everybody logged in."""
    c2pa_certificate: str = ""
    """PEM file with the certificates that files are signed with (C2PA), the signer's own first."""
    c2pa_key: str = ""
    """PEM file with its private key."""
    c2pa_algorithm: str = ""
    """Of the signature; by the key if empty."""
    c2pa_timestamp_url: str = ""
    """Of an RFC 3161 time-stamp authority; none if empty."""
    board_url: str = ""
    """Where people reach the board, for links in messages."""
    webhook_hosts: str = ""
    """Hosts that webhooks may be on, separated by commas; any public one if empty."""
    report_webhook: SecretStr = SecretStr("")
    report_mail: str = ""
    smtp_url: SecretStr = SecretStr("")
    slot_images: str = "1"
    """Images of one model that a slot renders at once: a number, or auto."""
    checkpoint_s: Seconds = 30.0
    """Seconds between checkpoints."""
    model_cache_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 200.0
    """Largest size of a node's cache of the farm's models, in GiB."""
    text_encoder: str = "auto"
    """Where text encoders are between two prompts: gpu, cpu, free or auto (`jobs.text_encoder`)."""
    regroup_gain_s: Seconds = 60.0
    """Seconds by which a running job must end sooner to begin anew on more slots."""
    warm_s: Seconds = 20.0
    """Seconds for which an idle group keeps its model loaded."""
    stop_s: Seconds = 15.0
    """Seconds that a stopping agent gives its ranks for their step and its checkpoint."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment, then the file in the working directory."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def read_settings(flags: Mapping[str, str | None]) -> Settings:
    """Put the settings together; raises `BadSetting` for an unreadable file, a bad key or a bad value."""
    given = {name: value for name, value in flags.items() if value}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as exc:
        raise _bad_setting(exc, given) from exc
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise BadSetting(FILE, "", f"cannot be read ({exc}); correct the file") from exc


def check_unused(settings: Settings, names: Iterable[str], fix: str) -> None:
    """Refuse settings that say nothing without another one, which is not set. Raises `BadSetting`."""
    for name in names:
        if value := getattr(settings, name):
            raise BadSetting(name, value, fix)


def _bad_setting(exc: ValidationError, given: Mapping[str, str]) -> BadSetting:
    first = exc.errors(include_url=False)[0]
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, Settings.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(Settings.model_fields)}"
        return BadSetting(name, f"in {FILE}", f"is unknown; {hint}")
    if Settings.model_fields[name].annotation is SecretStr:
        return BadSetting(name, "(hidden)", "is not text; put it in quotes")
    value = given.get(name) or os.environ.get(f"CHORALE_{name.upper()}") or f"in {FILE}"
    number = Settings.model_fields[name].annotation is float
    units = {"s": "seconds; use e.g. 30", "mib": "MiB; use e.g. 64", "gib": "GiB; use e.g. 200"}
    unit = units[name.rpartition("_")[2]] if number else ""
    problem = f"is not a number of {unit}" if number else "is not text; put it in quotes"
    return BadSetting(name, value, problem)
