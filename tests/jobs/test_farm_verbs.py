"""The farm's verbs from the command line, over an embedded database."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobs.cli.main import cli, main


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("CHORALE_DATABASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chorale(*arguments: str) -> Any:
    result = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False)
    return json.loads(result.stdout.splitlines()[-1])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(str(caught.value.code)), capsys.readouterr().err


def test_a_job_from_submission_to_cancelling_and_back() -> None:
    receipt = chorale("submit", "a red vase", "--size", "256x256", "--queue", "night", "--priority", "70")
    assert (receipt["new"], receipt["queue"]) == (1, "night")
    listed = chorale("list", "--queue", "night")
    (job,) = listed["jobs"]
    assert (job["state"], job["prompt"], job["priority"]) == ("queued", "a red vase", 70)
    assert listed["counts"]["queued"] == 1
    beginning = job["id"][:6]
    assert chorale("cancel", beginning)["state"] == "cancelled"
    assert chorale("retry", beginning)["state"] == "queued"
    assert chorale("pause", "--batch", receipt["batch"])["jobs"] == 1
    assert chorale("resume", "--queue", "night")["jobs"] == 1
    chorale("priority", beginning, "5")
    shown = chorale("show", beginning)
    assert (shown["state"], shown["priority"]) == ("queued", 5)
    assert [event["new"] for event in shown["events"]] == [
        "queued",
        "cancelled",
        "queued",
        "paused",
        "queued",
    ]
    assert chorale("batches")["batches"][0]["jobs"] == {"queued": 1}


def test_a_catalog_is_queued_once(home: Path) -> None:
    catalog = home / "catalog.csv"
    catalog.write_text("custom_id,color,product\n1,red,vase\n2,blue,mug\n")
    arguments = ("submit", str(catalog), "--template", "a {color} {product}", "--size", "128x128")
    checked = chorale(*arguments, "--dry-run")
    assert (checked["rows"], checked["bad"], checked["dry_run"]) == (2, 0, True)
    assert [image["prompt"] for image in checked["preview"]] == ["a red vase", "a blue mug"]
    assert chorale("list")["jobs"] == []
    assert chorale(*arguments)["new"] == 2
    catalog.write_text(catalog.read_text() + "3,white,bowl\n")
    again = chorale(*arguments)
    assert (again["new"], again["known"]) == (1, 2)


def test_bad_rows_queue_nothing_unless_they_are_skipped(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = home / "catalog.csv"
    catalog.write_text("custom_id,prompt,seed\n1,a vase,1\n2,a mug,x\n3,,3\n4,a bowl,4\n")
    code, text = refused(capsys, "submit", str(catalog))
    assert code == 2
    assert "line 3: seed: 'x'" in text and "line 4: prompt" in text and "2 bad rows" in text
    assert chorale("list")["jobs"] == []
    assert chorale("submit", str(catalog), "--skip-bad")["new"] == 2
    errors = [json.loads(line) for line in (home / "catalog.csv.errors.jsonl").read_text().splitlines()]
    assert [(row["line"], row["custom_id"]) for row in errors] == [(3, "2"), (4, "3")]


def test_queues_are_made_shown_and_deleted(capsys: pytest.CaptureFixture[str]) -> None:
    rules = ("--window", "22:00-07:00 Europe/Paris", "--limit", "4", "--priority", "60", "--share", "anna=2")
    (queue,) = chorale("queues", "night", *rules)["queues"]
    assert queue["time_window"] == "22:00-07:00 Europe/Paris"
    assert (queue["group_limit"], queue["priority"], queue["shares"]) == (4, 60, {"anna": 2.0})
    (queue,) = chorale("queues", "night", "--window", "none", "--pause")["queues"]
    assert (queue["time_window"], queue["paused"], queue["group_limit"]) == (None, True, 4)
    chorale("submit", "a vase", "--queue", "night")
    assert refused(capsys, "queues", "night", "--delete")[0] == 2
    chorale("cancel", "--queue", "night")
    chorale("queues", "night", "--delete")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("submit",), "prompt"),
        (("submit", "x", "--size", "100x100"), "multiple of 8"),
        (("submit", "x", "--deadline", "soon"), "deadline: 'soon'"),
        (("submit", "x", "--ranks", "0"), "ranks: '0'"),
        (("submit", "nowhere.csv"), "cannot be read"),
        (("show", "ffff"), "unknown job 'ffff'"),
        (("cancel",), "job"),
        (("queues", "q", "--window", "late"), "window: 'late'"),
        (("queues", "q", "--window", ""), "window: ''"),
        (("queues", "q", "--share", "anna"), "share: 'anna'"),
        (("queues", "--pause"), "queue"),
        (("list", "--database-url", "nonsense"), "database_url"),
        (("agent", "--metrics-address", "everywhere"), "metrics_address: everywhere is not HOST:PORT"),
    ],
)
def test_mistakes_are_told_and_nothing_is_queued(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], part: str
) -> None:
    code, text = refused(capsys, *arguments)
    assert code == 2 and part in text and "Traceback" not in text
    assert chorale("list")["jobs"] == [] and chorale("queues")["queues"] == []


@pytest.mark.parametrize("asked", ["flag", "environment"])
def test_an_agent_whose_metrics_port_is_taken_does_not_join(
    asked: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = ["agent", "--name", "n1", "--slots", "1"]
        if asked == "flag":
            arguments += ["--metrics-address", address]
        else:
            monkeypatch.setenv("CHORALE_METRICS_ADDRESS", address)
        code, text = refused(capsys, *arguments)
    assert code == 2 and f"metrics_address: {address} is not available" in text
    assert chorale("nodes")["nodes"] == []


def test_what_is_finished_cannot_be_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    chorale("submit", "a vase")
    job = chorale("list")["jobs"][0]["id"]
    code, text = refused(capsys, "resume", job)
    assert code == 3 and "is queued; only paused jobs can be resumed" in text


def test_settings_come_from_flag_environment_and_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "chorale.toml").write_text(f'database_url = "sqlite:///{home}/file.db"\n')
    chorale("submit", "from the file")
    monkeypatch.setenv("CHORALE_DATABASE_URL", f"sqlite:///{home}/environment.db")
    assert chorale("list")["jobs"] == []
    flag = ("--database-url", f"sqlite:///{home}/file.db")
    assert chorale("list", *flag)["jobs"][0]["prompt"] == "from the file"


def test_commands_and_flags_are_completed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_CHORALE_COMPLETE", "bash_complete")
    for typed, wanted in (("chorale dra", "drain"), ("chorale submit --not", "--not-before")):
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
        with pytest.raises(SystemExit) as ended:
            main([])
        assert (ended.value.code, capsys.readouterr().out) == (0, f"plain,{wanted}\n")


def test_the_examples_catalog_is_48_products() -> None:
    catalog = Path(__file__).parent.parent.parent / "examples" / "catalog.csv"
    template = "a studio photo of a {color} {product} {place}"
    assert chorale("submit", str(catalog), "--template", template, "--size", "128x128")["new"] == 48
