"""`chorale doctor`: this machine, and services that can or cannot be reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from jobs.cli.main import main
from tests.support.cli import last_json

UNREACHABLE = "127.0.0.1:1"
SERVICES = {
    "database": ("CHORALE_DATABASE_URL", f"postgresql://me:planted@{UNREACHABLE}/farm"),
    "broker": ("CHORALE_BROKER_URL", f"redis://:planted@{UNREACHABLE}/0"),
    "store": ("CHORALE_STORE_URL", "s3://studio/images"),
}


@dataclass(frozen=True)
class Result:
    code: int
    text: str

    def findings(self) -> dict[str, dict[str, Any]]:
        return {each["name"]: each for each in last_json(self.text)["findings"]}


RunDoctor = Callable[..., Result]


@pytest.fixture
def run_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunDoctor:
    """Runs the command with some settings, and none of the machine's own."""

    def run(*arguments: str, **environment: str) -> Result:
        for variable, _ in SERVICES.values():
            monkeypatch.delenv(variable, raising=False)
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        with pytest.raises(SystemExit) as end:
            main(["doctor", *arguments])
        output = capsys.readouterr()
        return Result(int(str(end.value.code)), output.out + output.err)

    return run


def test_embedded_services_are_found(run_doctor: RunDoctor) -> None:
    result = run_doctor("--json")
    assert result.code == 0
    assert all("embedded" in result.findings()[name]["detail"] for name in SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_an_unreachable_service_is_missing(name: str, run_doctor: RunDoctor) -> None:
    variable, url = SERVICES[name]
    keys = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "planted"}
    environment = {variable: url, "CHORALE_S3_ENDPOINT_URL": f"http://{UNREACHABLE}"} | keys
    result = run_doctor("--json", **environment)
    assert result.code == 3
    found = result.findings()
    assert [key for key, each in found.items() if each["needed"] and not each["here"]] == [name]
    assert "127.0.0.1" in found[name]["detail"]
    assert "planted" not in result.text
    assert run_doctor("--json", "--no-services", **environment).code == 0


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("CHORALE_BROKER_URL", "radis://:planted@host"),
        ("CHORALE_DATABASE_URL", "oracel://me:planted@host/db"),
    ],
)
def test_a_bad_url_is_refused_without_its_password(variable: str, url: str, run_doctor: RunDoctor) -> None:
    result = run_doctor(**{variable: url})
    assert result.code == 2
    assert "planted" not in result.text
    assert url.partition("://")[0] in result.text
