"""What the doctor says of this machine, and of the services that it is set up with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from jobs.cli.main import main
from tests.support.cli import last_json

NOBODY = "127.0.0.1:1"
SERVICES = {
    "database": ("CHORALE_DATABASE_URL", f"postgresql://me:planted@{NOBODY}/farm"),
    "broker": ("CHORALE_BROKER_URL", f"redis://:planted@{NOBODY}/0"),
    "store": ("CHORALE_STORE_URL", "s3://studio/images"),
}


@dataclass(frozen=True)
class Visit:
    code: int
    text: str

    def findings(self) -> dict[str, dict[str, Any]]:
        return {each["name"]: each for each in last_json(self.text)["findings"]}


Examine = Callable[..., Visit]


@pytest.fixture
def examine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Examine:
    """Runs the command with some settings, and none of the machine's own."""

    def run(*words: str, **environment: str) -> Visit:
        for variable, _ in SERVICES.values():
            monkeypatch.delenv(variable, raising=False)
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        with pytest.raises(SystemExit) as end:
            main(["doctor", *words])
        said = capsys.readouterr()
        return Visit(int(str(end.value.code)), said.out + said.err)

    return run


def test_what_is_embedded_is_here(examine: Examine) -> None:
    visit = examine("--json")
    assert visit.code == 0
    assert all("embedded" in visit.findings()[name]["detail"] for name in SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_that_does_not_answer_is_missing(name: str, examine: Examine) -> None:
    variable, url = SERVICES[name]
    keys = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "planted"}
    environment = {variable: url, "CHORALE_S3_ENDPOINT_URL": f"http://{NOBODY}"} | keys
    visit = examine("--json", **environment)
    assert visit.code == 3
    found = visit.findings()
    assert [key for key, each in found.items() if each["needed"] and not each["here"]] == [name]
    assert "127.0.0.1" in found[name]["detail"]
    assert "planted" not in visit.text
    assert examine("--json", "--no-services", **environment).code == 0


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("CHORALE_BROKER_URL", "radis://:planted@host"),
        ("CHORALE_DATABASE_URL", "oracel://me:planted@host/db"),
    ],
)
def test_a_url_of_no_kind_is_refused_without_its_password(variable: str, url: str, examine: Examine) -> None:
    visit = examine(**{variable: url})
    assert visit.code == 2
    assert "planted" not in visit.text
    assert url.partition("://")[0] in visit.text
