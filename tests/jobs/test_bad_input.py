"""Bad input gets one sentence with field and fix, exit code 2, and nothing is written."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.cli.main import main

SIZES = [
    ("0x512", "width: 0 is not a whole number from 8 to 131072"),
    ("-8x512", "width: -8 is not a whole number from 8 to 131072"),
    ("512", "WIDTHxHEIGHT"),
    ("512xtall", "WIDTHxHEIGHT"),
    ("513x512", "width: 513 is not a multiple of 8; use 512 or 520"),
    ("7x512", "width: 7 is not a multiple of 8; use 8"),
    ("512x1000000", "height: 1000000 is not a whole number from 8 to 131072"),
    ("1e3x512", "WIDTHxHEIGHT"),
]
FLAGS = [
    (["--steps", "0"], "steps: 0"),
    (["--steps", "many"], "steps: 'many'"),
    (["--steps", "2.5"], "not a whole number"),
    (["--guidance-scale", "nan"], "guidance_scale: nan"),
    (["--guidance-scale", "inf"], "finite"),
    (["--guidance-scale", "-1"], "out of range"),
    (["--seed", "-1"], "seed: -1"),
    (["--sampler", "eulr"], "use one of euler"),
    (["--blend", "mix"], "overlap, shift"),
    (["--dtype", "int4"], "float32"),
    (["--format", "gif"], "png, webp, jpeg"),
    (["--format", "webp", "--size", "16392x64"], "above the limit of webp"),
    (["--quality", "101"], "1 to 100"),
    (["--strength", "0"], "out of range"),
    (["--tile-size", "500"], "use one of 64, 128, 256, 512, 1024, 2048"),
    (["--ranks", "0"], "1 to 1024"),
    (["--ranks", "2000"], "1 to 1024"),
    (["--ranks", "two"], "auto or a whole number"),
    (["--device", "tpu"], "auto, cpu or cuda"),
    (["--model", "/nowhere/at/all"], "model"),
    (["--out", "s3://A_BUCKET/prefix"], "invalid bucket name"),
    (["--nnodes", "2"], "node-rank: missing; use 0 to 1"),
    (["--nnodes", "2", "--node-rank", "2"], "node-rank: '2'"),
    (["--nnodes", "2", "--node-rank", "0"], "master-address"),
    (["--nnodes", "3:2", "--node-rank", "0", "--master-address", "a"], "nnodes: '3'"),
    (["--nnodes", "2", "--node-rank", "0", "--master-address", "a", "--master-port", "x"], "master-port"),
    (
        [
            "--nnodes",
            "64",
            "--node-rank",
            "0",
            "--master-address",
            "a",
            "--ranks",
            "1000",
            "--group-secret-file",
            "/proc/self/status",
        ],
        "ranks: 64000",
    ),
    (
        ["--nnodes", "2", "--node-rank", "0", "--master-address", "a"],
        "CHORALE_GROUP_SECRET: missing",
    ),
    (["--nnodes", "2", "--node-rank", "0", "--master-address", "a"], "openssl rand -hex 32"),
    (
        ["--nnodes", "2", "--node-rank", "0", "--master-address", "a", "--group-secret-file", "/none"],
        "group-secret-file: '/none'",
    ),
    (
        [
            "--nnodes",
            "2",
            "--node-rank",
            "0",
            "--master-address",
            "a",
            "--group-secret-file",
            "/proc/self/comm",
        ],
        "of at least 32 characters",
    ),
    (
        [
            "--nnodes",
            "2",
            "--node-rank",
            "0",
            "--master-address",
            "192.0.2.1",
            "--group-secret-file",
            "/proc/self/status",
        ],
        "master-address: '192.0.2.1' is not an address of this machine",
    ),
    (["--nonsense"], "--nonsense"),
]


def run(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("size", "words"), SIZES)
def test_sizes(size: str, words: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, errors = run(["render", "a red vase", "--size", size], capsys)
    assert code == 2
    assert words in errors
    assert errors.count("\n") == 1
    assert not list(empty_folder.iterdir())


@pytest.mark.parametrize(
    ("flags", "words"), FLAGS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_flags(flags: list[str], words: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, errors = run(["render", "a red vase", *flags], capsys)
    assert code == 2
    assert words in errors
    assert errors.count("\n") == 1
    assert not list(empty_folder.iterdir())


@pytest.mark.parametrize("prompt", ["", "   "])
def test_an_empty_prompt(prompt: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, errors = run(["render", prompt], capsys)
    assert code == 2
    assert "prompt" in errors


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.yaml", "prompt: x\nstpes: 3\n", "did you mean steps?"),
        ("a.yaml", "prompt: [", "not valid yaml"),
        ("a.yaml", "just words", "contains no names and values"),
        ("a.toml", "steps = 3", "prompt: missing; give one, e.g. a red vase"),
        ("a.json", '{"prompt": "x", "width": "wide"}', "width: 'wide'"),
        ("a.json", '{"prompt": "x", "steps": true}', "steps: True"),
        ("a.txt", "x", "unknown ending"),
    ],
)
def test_spec_files(
    name: str, text: str, words: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty_folder / name).write_text(text)
    code, errors = run(["render", "--spec", name], capsys)
    assert code == 2
    assert words in errors


def test_a_spec_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    code, errors = run(["render", "--spec", "none.yaml"], capsys)
    assert code == 2
    assert "cannot be read" in errors


def test_a_folder_that_is_not_ours_is_left_alone(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty_folder / "mine").mkdir()
    (empty_folder / "mine" / "letter.txt").write_text("dear")
    code, errors = run(["render", "a red vase", "--out", "mine"], capsys)
    assert code == 2
    assert "not empty" in errors
    assert (empty_folder / "mine" / "letter.txt").read_text() == "dear"


THEIRS = {
    "digest": "0" * 64,
    "root": "0" * 64,
    "width": 1,
    "height": 1,
    "tile_size": 64,
    "levels": [[1, 1]],
    "format": "png",
    "tiles": {"image_files/0/0_0.png": {"sha256": "0" * 64, "bytes": 1}},
}
"""Another image's manifest, or the marker of its folder."""


@pytest.mark.parametrize("name", ["manifest.json", "spec.json"])
def test_another_specs_folder_is_refused(
    name: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty_folder / "theirs").mkdir()
    (empty_folder / "theirs" / name).write_text(json.dumps(THEIRS))
    code, errors = run(["render", "a red vase", "--out", "theirs"], capsys)
    assert code == 2
    assert "another spec's" in errors


def test_json_tells_the_error_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["render", "a red vase", "--steps", "0", "--json"])
    document = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert document["code"] == 2
    assert document["field"] == "steps"


def test_a_cuda_request_without_cuda_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    code, errors = run(["render", "a red vase", "--device", "cuda"], capsys)
    assert code == 2
    assert "needs a CUDA device" in errors


def test_more_ranks_than_calls_work_with_fewer(capsys: pytest.CaptureFixture[str]) -> None:
    code, errors = run(["render", "a red vase", "--size", "128x128", "--ranks", "64", "--dry-run"], capsys)
    assert code == 0
    assert "only 1 of 64 ranks" in errors
