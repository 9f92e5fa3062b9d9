"""Values that once ended in a traceback: one sentence and exit code 2, and nothing queued or written."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli.main import main

DIGITS = "9" * 5000


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "day.yaml").write_text("prompt: x\nseed: 9999-99-99\n")
    (tmp_path / "bomb.yaml").write_text(
        "a0: &a0 [x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
        + "prompt: *a11\n"
    )
    (tmp_path / "deep.json").write_text('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}")
    (tmp_path / "digits.json").write_text(f'{{"prompt": "x", "seed": {DIGITS}}}')
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["queues", "night", "--window", "22:00-07:00 Europe"], "window: "),
        (["queues", "night", "--window", "22:00-07:00 ../../etc/passwd"], "window: "),
        (["queues", "night", "--window", "22:00-07:00 " + "x" * 300], "window: "),
        (["queues", "night", "--limit", DIGITS], "limit: "),
        (["queues", "x" * 300, "--pause"], "queue: "),
        (["submit", "x", "--ranks", DIGITS], "ranks: "),
        (["submit", "x", "--seed", DIGITS], "seed: "),
        (["submit", "x", "--queue", "x" * 65], "queue: "),
        (["submit", "x", "--owner", "x" * 129], "owner: "),
        (["submit", "x", "--not-before", "9999-12-31T23:59:59-23:59"], "not_before: "),
        (["submit", "caf\udce9"], "argument: "),
        (["render", "x", "--dry-run", "--model", "x" * 300], "model: "),
        (["render", "x", "--dry-run", "--model", "a/" * 3000], "model: "),
        (["render", "x", "--dry-run", "--init", "x" * 300], "init: "),
        (["render", "x", "--dry-run", "--init", "folder"], "init: "),
        (["render", "x", "--dry-run", "--out", "x" * 300], "out: "),
        (["render", "x", "--dry-run", "--spec", "x" * 300 + ".yaml"], "spec: "),
        (["render", "--dry-run", "--spec", "day.yaml"], "spec: "),
        (["render", "--dry-run", "--spec", "bomb.yaml"], "spec: "),
        (["render", "--dry-run", "--spec", "deep.json"], "spec: "),
        (["render", "--dry-run", "--spec", "digits.json"], "spec: "),
        (["plan", "x", "--size", "131072x131072", "--blend", "shift", "--dilated", "0.5"], "width: "),
        (["report", "--html", "folder"], "html: "),
        (["report", "--html", "nowhere/page.html"], "html: "),
        (["report", "--since", "9" * 400 + "d"], "since: "),
        (["list", "--database-url", "postgresql://host:word/farm"], "database_url: "),
        (["render", "x", "--dry-run", "--out", "a/" * 3000], "out: "),
        (["verify", "x" * 5000], "image: "),
        (["rerender", "/proc/self/mem"], "manifest: "),
        (["rerender", "x" * 5000], ""),
        (["batches", "x", "--results", "day.yaml"], ""),
    ],
)
def test_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    text = capsys.readouterr().err
    assert ended.value.code == 2, text
    assert text.startswith(f"chorale: {sentence}") and "Traceback" not in text and len(text) < 800, text[:900]
