"""A farm from another machine: the Python client and the commands with --url, over a real board."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from jobs.cli.main import main
from jobs.client import Farm
from jobs.errors import BoardUnreachable, JobCancelled, JobFailed, JobTimedOut, Refused
from render.errors import BadInput
from tests.jobs.board.conftest import OPERATOR, VIEWER, SmallFarm
from tests.support.board import RunningBoard

Reply = Callable[..., Any]


@pytest.fixture
def farm(small_farm: SmallFarm) -> Iterator[Farm]:
    with Farm(small_farm.board.address) as opened:
        yield opened


@pytest.fixture
def reply(
    small_farm: SmallFarm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Reply:
    """What a command with --url prints as JSON, in a process that knows no database."""
    monkeypatch.setenv("CHORALE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")

    def run(*words: str, code: int = 0, url: str = "", token: str = "") -> Any:
        more = ("--token-file", token) if token else ()
        with pytest.raises(SystemExit) as ended:
            main(["--url", url or small_farm.board.address, *more, *words, "--json"])
        out = capsys.readouterr().out
        assert (ended.value.code or 0) == code, out
        return json.loads(out.splitlines()[-1])

    return run


def test_from_a_submission_to_files(farm: Farm, tmp_path: Path) -> None:
    rows = [{"custom_id": f"A-{number}", "prompt": "a red vase", "seed": number} for number in (1, 2)]
    defaults = {"size": "320x192", "steps": 2, "tile_size": 64}
    made = farm.submit_batch(rows=rows, name="feed.jsonl", defaults=json.dumps(defaults), channel="ebay")
    batch = made["batch"]
    # The farm of the fixture has rendered these two images.
    assert (made["new"], made["known"]) == (0, 2)
    assert farm.wait(batch=batch, timeout_s=300) == {"done": 2}
    job = farm.rows(batch)[0]
    assert (job["custom_id"], farm.job(job["id"])["spec"]["seed"]) == ("A-1", 1)
    assert farm.preview(job["id"])[:4] == b"RIFF"
    assert farm.download(job["id"], tmp_path / "vase.jpg") == (tmp_path / "vase.jpg").stat().st_size
    with Image.open(tmp_path / "vase.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (320, 192))
    assert {each["id"] for each in farm.jobs(batch=batch)} == {each["id"] for each in farm.rows(batch)}
    assert len(list(farm.jobs(limit=1, batch=batch))) == 1
    farm.review(batch, ["A-1"], verdict="keep", reviewer="anna")
    assert farm.reviews(batch)["counts"]["kept"] == 1
    assert farm.report(batch=batch)["jobs"] == {"done": 2}


def test_what_the_farm_refuses_has_its_sentence(farm: Farm, small_farm: SmallFarm) -> None:
    with pytest.raises(Refused, match="width: 100 is not a multiple of 8"):
        farm.submit("a vase", size="100x100")
    with pytest.raises(Refused, match="unknown job"):
        farm.job("no id")
    with pytest.raises(Refused, match="is unknown"):
        farm.batch("0123")
    with pytest.raises(Refused) as refused:
        farm.submit_batch(rows=[{"prompt": "a vase", "steps": 0}])
    assert refused.value.details["errors"]
    with pytest.raises(Refused, match="is done"):
        farm.change("cancel", small_farm.done[0])


def test_waiting_ends_as_the_jobs_do() -> None:
    def answering(state: str) -> Farm:
        answers = httpx2.MockTransport(lambda request: httpx2.Response(200, json={"state": state}))
        return Farm("http://127.0.0.1:1", transport=answers)

    assert answering("done").wait("3fa9") == {"done": 1}
    for state, kind in (("failed", JobFailed), ("cancelled", JobCancelled)):
        with pytest.raises(kind):
            answering(state).wait("3fa9")
    with pytest.raises(JobTimedOut):
        answering("queued").wait("3fa9", timeout_s=-1)


@pytest.mark.parametrize(
    ("status", "body", "kind", "part"),
    [
        (503, {"error": "the database does not answer"}, BoardUnreachable, "database does not answer"),
        (429, {"error": "too many wrong tokens"}, BoardUnreachable, "too many"),
        (502, None, BoardUnreachable, "answers with status 502"),
        (404, None, Refused, "answers with status 404"),
        (200, None, BoardUnreachable, "something else than JSON"),
        (200, [], BoardUnreachable, "as no board"),
    ],
)
def test_answers_of_other_servers_are_told(status: int, body: Any, kind: type[Exception], part: str) -> None:
    content: dict[str, Any] = {"text": "<html>"} if body is None else {"json": body}
    answers = httpx2.MockTransport(lambda request: httpx2.Response(status, **content))
    with pytest.raises(kind, match=part):
        Farm("https://farm.example", transport=answers).job("3fa9")


def test_a_redirect_gets_no_token() -> None:
    asked: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return httpx2.Response(307, headers={"location": "https://elsewhere.example/"})

    with pytest.raises(Refused, match="leads to https://elsewhere"):
        Farm("https://farm.example", "secret", transport=httpx2.MockTransport(answer)).job("3fa9")
    assert [request.url.host for request in asked] == ["farm.example"]


@pytest.mark.parametrize("url", ["farm.example", "ftp://farm.example", "https://", "https://["])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BadInput, match="url"):
        Farm(url)


def test_the_commands_say_what_those_on_the_database_say(
    reply: Reply, small_farm: SmallFarm, tmp_path: Path
) -> None:
    first = small_farm.done[0]
    assert first in {row["id"] for row in reply("list", "--state", "done")["jobs"]}
    assert reply("show", first[:10])["id"] == first
    assert reply("wait", first) == {"counts": {"done": 1}}
    words = ("--size", "320x192", "--steps", "2", "--spec", str(_spec(tmp_path)), "--channel", "ebay")
    made = reply("submit", "a red vase", "--seed", "1", "--seeds", "2", *words)
    assert (made["new"], made["known"], made["done"]) == (0, 2, 2)
    batch = made["batch"]
    dry = reply("submit", "a vase", "--seed", "random:7", "--seeds", "3", "--dry-run")
    assert (dry["rows"], dry["dry_run"]) == (3, True) and "random:7" in dry["notes"][0]
    kept = reply("review", batch, "--reject", "image-s2", "--reason", "blue", "--keep-rest")
    assert kept["counts"]["kept"] == kept["counts"]["rejected"] == 1
    assert reply("review", batch, "--verdict", "rejected")["images"][0]["votes"][0]["reason"] == "blue"
    files = reply("export", "--batch", batch, "--channel", "ebay", str(tmp_path / "out"))["files"]
    assert len([each for each in files if each["file"].endswith(".jpg")]) == 1
    reply("export", "--batch", batch, "--channel", "ebay", str(tmp_path / "out"), code=2)
    assert reply("export", first, str(tmp_path / "one.png"))["files"][0]["bytes"] > 0
    assert reply("report", "--batch", batch)["receipts"]
    held = reply("submit", "later", *words[:4], "--not-before", "2100-01-01")["jobs"][0]["id"]
    assert reply("cancel", held)["jobs"] == 1


def _spec(folder: Path) -> Path:
    path = folder / "spec.yaml"
    path.write_text("tile_size: 64\n")
    return path


def test_mistakes_of_commands_are_bad_input(reply: Reply, tmp_path: Path) -> None:
    assert "unknown job" in reply("show", "ffff", code=2)["error"]
    assert "init" in reply("submit", "a vase", "--init", "a.png", code=2)["error"]
    assert "database" in reply("queues", code=2)["error"]
    bad = tmp_path / "bad.csv"
    bad.write_text("prompt,steps\na vase,0\n")
    assert "bad row" in reply("submit", str(bad), code=2)["error"]
    assert "no answer" in reply("list", code=6, url="http://127.0.0.1:9")["error"]


def test_a_token_comes_from_a_file(locked: RunningBoard, reply: Reply, tmp_path: Path) -> None:
    good, viewer, wrong = tmp_path / "good", tmp_path / "viewer", tmp_path / "wrong"
    good.write_text(f"{OPERATOR}\n")
    viewer.write_text(VIEWER)
    wrong.write_text("")
    assert "token is required" in reply("list", code=2, url=locked.address)["error"]
    assert reply("list", url=locked.address, token=str(viewer))["jobs"] is not None
    assert "viewers cannot" in reply("submit", "x", code=2, url=locked.address, token=str(viewer))["error"]
    made = reply("submit", "x", "--size", "128x128", url=locked.address, token=str(good))
    assert made["new"] == 1
    assert "holds no token" in reply("list", code=2, url=locked.address, token=str(wrong))["error"]


def test_files_of_this_machine_are_sent_and_named(
    reply: Reply, small_farm: SmallFarm, farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image by a flag; images and a mask beside a batch file, by its cells."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(4).integers(0, 255, (2, 192, 320, 3), np.uint8)
    for name, each in zip(("one", "two"), pixels, strict=True):
        Image.fromarray(each).save(tmp_path / "photos" / f"{name}.png")
    Image.fromarray(np.full((192, 320), 255, np.uint8)).save(tmp_path / "photos" / "all.png")
    quick = ("--steps", "2", "--strength", "0.5")
    made = reply("submit", "a vase", "--init", "photos/one.png", *quick)
    spec = farm.job(made["jobs"][0]["id"])["spec"]
    digest = hashlib.sha256((tmp_path / "photos" / "one.png").read_bytes()).hexdigest()
    assert spec["init"]["digest"] == digest and spec["source_type"]
    assert (spec["width"], spec["height"]) == (320, 192)
    feed = tmp_path / "feed.csv"
    feed.write_text("SKU,prompt,init,mask\nA,a vase,photos/one.png,\nB,a mug,photos/two.png,photos/all.png\n")
    made = reply("submit", str(feed), "--id-column", "SKU", *quick)
    specs = {each["custom_id"]: farm.job(each["id"])["spec"] for each in made["jobs"]}
    assert specs["A"]["init"]["digest"] == digest and specs["A"].get("mask") is None
    assert (
        specs["B"]["mask"]["digest"] == hashlib.sha256((tmp_path / "photos/all.png").read_bytes()).hexdigest()
    )
    # The bytes are in the farm's store, so that any node gets them.
    stored = small_farm.board.log.parent / "chorale" / "images" / "inputs" / digest
    assert stored.read_bytes() == (tmp_path / "photos" / "one.png").read_bytes()
    reply("cancel", "--batch", made["batch"])


def test_files_that_are_missing_or_wrong_are_told_by_their_names(
    reply: Reply, farm: Farm, small_farm: SmallFarm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = farm.page_of_jobs()["counts"]
    wrong = tmp_path / "notes.png"
    wrong.write_text("no image")
    for words, part in (
        (("--init", str(tmp_path / "gone.png")), "is not a file on this machine"),
        (("--lora", f"{tmp_path / 'gone.safetensors'}:0.5"), "is not a file on this machine"),
        (("--lora", f"{wrong}:0.5"), "notes.png"),
        (("--init", str(wrong)), "notes.png"),
        (("--controlnet", "/somewhere", "--control", f"canny={wrong}"), "did not come with the batch"),
        (("--vae", "taesd"), "without --url"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["--url", small_farm.board.address, "submit", "a vase", *words])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and part in error and "chorale-sent" not in error, error
    feed = tmp_path / "feed.csv"
    feed.write_text("prompt,init\na vase,one.png\na mug,two.png\n")
    with pytest.raises(SystemExit):
        main(["--url", small_farm.board.address, "submit", str(feed)])
    assert (
        "'one.png' is not a file on this machine; check the path (1 other name too)"
        in capsys.readouterr().err
    )
    assert farm.page_of_jobs()["counts"] == before


def test_a_sent_file_is_what_its_digest_says(small_farm: SmallFarm, farm: Farm, tmp_path: Path) -> None:
    board, data = small_farm.board, b"some bytes"
    digest = hashlib.sha256(data).hexdigest()
    assert board.ask(f"/api/v1/files/{digest}").status == 404
    assert board.ask(f"/api/v1/files/{'0' * 64}", "PUT", data).status == 400
    assert board.ask("/api/v1/files/no-digest", "PUT", data).status == 400
    assert board.ask("/api/v1/files/no-digest").status == 400
    sent = board.ask(f"/api/v1/files/{digest}", "PUT", data)
    assert sent.status == 201 and sent.json == {"digest": digest, "bytes": len(data)}
    assert board.ask(f"/api/v1/files/{digest}").json["bytes"] == len(data)
    file = tmp_path / "x"
    file.write_bytes(data)
    assert farm.send_file(file) == digest
    for text in ("[]", "{", '{"a.png": 1}', '{"a.png": "b"}', json.dumps({"a.png": "0" * 64})):
        with pytest.raises(Refused, match=r"files|digest"):
            farm.submit_batch(rows=[{"prompt": "a vase"}], files=text, dry_run=True)


def test_files_are_for_operators_and_have_a_limit(locked: RunningBoard, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    path, operator = f"/api/v1/files/{digest}", f"Bearer {OPERATOR}"
    assert locked.ask(path, "PUT", b"x", authorization=f"Bearer {VIEWER}").status == 403
    assert locked.ask(path, "PUT", b"x").status == 401
    large = {"content_length": str(3 << 30), "authorization": operator}
    assert locked.ask(path, "PUT", b"", **large).status == 413
