"""Where settings come from, what is refused, and that no secret is shown."""

from pathlib import Path

import pytest

from infra.errors import BadSetting
from infra.settings import Settings, read_settings


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_flags_win_over_the_environment_and_that_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("chorale.toml").write_text('node = "file"\naddress = "file"\nmodel = "file"\nwarm_s = 7\n')
    monkeypatch.setenv("CHORALE_NODE", "environment")
    monkeypatch.setenv("CHORALE_ADDRESS", "environment")
    monkeypatch.setenv("CHORALE_CHECKPOINT_S", "")
    settings = read_settings({"node": "flag", "address": None})
    assert (settings.node, settings.address, settings.model) == ("flag", "environment", "file")
    assert (settings.warm_s, settings.checkpoint_s) == (7.0, 30.0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('databse_url = "x"', "databse_url: in chorale.toml is unknown; did you mean database_url"),
        ("node = 3", "node: in chorale.toml is not text; put it in quotes"),
        ('warm_s = "soon"', "warm_s: in chorale.toml is not a number of seconds; use e.g. 30"),
        ("warm_s = -1", "warm_s: in chorale.toml is not a number of seconds"),
        ("warm_s = inf", "warm_s: in chorale.toml is not a number of seconds"),
        ("broker_url = 3", r"broker_url: \(hidden\) is not text"),
        ("node = ", r"chorale.toml: .*cannot be read \(.*\); correct the file"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(text: str, sentence: str) -> None:
    Path("chorale.toml").write_text(text)
    with pytest.raises(BadSetting, match=sentence):
        read_settings({})


def test_a_bad_variable_is_refused_with_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORALE_STOP_S", "soon")
    with pytest.raises(BadSetting, match="stop_s: soon is not a number of seconds"):
        read_settings({})


def test_no_secret_is_shown() -> None:
    settings = Settings.model_validate(
        {
            "database_url": "postgresql://farm:hunter2@db/farm",
            "broker_url": "redis://:hunter2@redis",
            "report_webhook": "https://hooks.example/hunter2",
            "smtp_url": "smtp://me:hunter2@mail",
        }
    )
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump()}"
