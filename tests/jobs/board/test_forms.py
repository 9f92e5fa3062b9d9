"""What the pages' forms do, from a session that has loaded their page."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from urllib.parse import urlencode

import pytest

from tests.support.board import Answer, RunningBoard

_BOUNDARY = "part-of-a-form"
CATALOG = "custom_id,color,product\n1,red,vase\n2,blue,mug\n"


@dataclass(frozen=True)
class Visitor:
    board: RunningBoard
    cookie: str
    token: str

    def send(self, path: str, **fields: str) -> Answer:
        body = urlencode(fields | {"csrf_token": self.token}).encode()
        kind = "application/x-www-form-urlencoded"
        return self.board.ask(path, "POST", body, cookie=self.cookie, content_type=kind)

    def upload(self, name: str, text: str, **fields: str) -> Answer:
        parts = [
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
            for field, value in (fields | {"csrf_token": self.token}).items()
        ]
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        body = ("".join(parts) + head + text + f"\r\n--{_BOUNDARY}--\r\n").encode()
        kind = f"multipart/form-data; boundary={_BOUNDARY}"
        return self.board.ask("/submit/batch", "POST", body, cookie=self.cookie, content_type=kind)


@pytest.fixture
def visitor(quiet_board: RunningBoard) -> Visitor:
    page = quiet_board.ask("/submit")
    token = re.search(rb'name="csrf_token" value="([\w-]+)"', page.body)
    assert token is not None
    return Visitor(quiet_board, page.headers["set-cookie"].partition(";")[0], token[1].decode())


def test_a_catalog_is_uploaded_and_steered(visitor: Visitor) -> None:
    fields = {"template": "a {color} {product}", "size": "128x128", "queue": "forms"}
    sent = visitor.upload("catalog.csv", CATALOG, **fields)
    assert sent.status == 303
    batch = sent.headers["location"].rpartition("/")[2]
    shown = visitor.board.ask(f"/api/v1/batches/{batch}").json
    assert [row["prompt"] for row in shown["rows"]] == ["a red vase", "a blue mug"]
    assert b"catalog.csv" in visitor.board.ask(f"/batches/{batch}").body
    cancelled = visitor.send(f"/batches/{batch}/do", verb="cancel")
    assert cancelled.headers["location"].endswith("notice=2+jobs+are+cancelled")
    assert visitor.send(f"/batches/{batch}/do", verb="burn").status == 400


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("bad.csv", CATALOG + "1,white,bowl\n", b"already used in line 2"),
        ("empty.csv", "custom_id,color,product\n", b"has no rows"),
        ("batch.yaml", "rows: []", b"has no rows"),
        ("batch.ods", "rows: []", b"has an unknown ending; use one of .csv"),
        ("", "", b"file: missing; choose a file with one of .csv"),
        ("models.jsonl", '{"color": "red", "product": "x", "model": "/etc"}\n', b"new to this farm"),
        ("refiner.jsonl", '{"color": "red", "product": "x", "refiner": "/etc"}\n', b"set on the board"),
    ],
)
def test_a_bad_file_queues_nothing(visitor: Visitor, name: str, text: str, part: bytes) -> None:
    before = visitor.board.ask("/api/v1/batches").json
    refused = visitor.upload(name, text, template="a {color} {product}")
    assert refused.status == 400 and part in refused.body
    assert visitor.board.ask("/api/v1/batches").json == before


def test_a_job_and_a_queue_are_steered(visitor: Visitor) -> None:
    sent = visitor.send("/submit", prompt="a form's vase", size="128 × 128", queue="forms")
    job = sent.headers["location"].rpartition("/")[2]
    assert visitor.send(f"/jobs/{job}/do", verb="pause").status == 303
    assert visitor.board.ask(f"/api/v1/jobs/{job}").json["state"] == "paused"
    assert visitor.send(f"/jobs/{job}/do", verb="pause").status == 409
    assert visitor.send(f"/jobs/{job}/do", verb="cancel").status == 303
    for answer, paused in (("yes", True), ("no", False)):
        assert visitor.send("/queues/forms/do", paused=answer).status == 303
        queues = visitor.board.ask("/api/v1/queues").json["queues"]
        assert [queue["paused"] for queue in queues if queue["name"] == "forms"] == [paused]
    assert visitor.send("/nodes/nowhere/do", draining="yes").status == 400


def test_the_form_is_taken_as_its_page_has_it(visitor: Visitor) -> None:
    path = "/submit"
    for _ in range(2):
        page = visitor.board.ask(path).body.decode().partition('id="batch"')[0]
        fields = dict(re.findall(r'<input name="(\w+)" value="([^"]*)"', page))
        assert len(fields) > 10
        made = visitor.send("/submit", **fields | {"prompt": "a bowl as it comes", "queue": "forms"})
        assert made.status == 303, made.body
        # And once more from the page of its variation.
        path = f"/submit?job={made.headers['location'].rpartition('/')[2]}"


def test_a_variation_keeps_what_the_form_does_not_have(visitor: Visitor) -> None:
    boxes = ["0,0,0.5,1: a blue vase"]
    tiles = ["one: a,b", "two: b,a"]
    image = {"prompt": "a table", "size": "256x128", "queue": "forms", "boxes": boxes, "variation": 2}
    image |= {"tile_set": tiles, "cross_attention": 0.5}
    original = visitor.board.ask("/api/v1/jobs", "POST", image).json["job"]
    page = visitor.board.ask(f"/submit?job={original}").body
    assert b"it keeps its" not in page, "all of it is in the form"
    assert b"a blue vase" in page and b"one" in page
    sent = visitor.send("/submit", of=original, prompt="a table", size="256x128", seed="1", variation="3")
    assert sent.status == 303
    made = visitor.board.ask(f"/api/v1{sent.headers['location']}").json["spec"]
    known = visitor.board.ask(f"/api/v1/jobs/{original}").json["spec"]
    assert (made["seed"], made["variation"]) == (1, 3)
    for name in ("boxes", "tile_set", "cross_attention"):
        assert made[name] == known[name] and known[name]
    assert known["variation"] == 2
    # An empty field is the default, not the original's value.
    sent = visitor.send("/submit", of=original, prompt="a table", size="256x128", boxes="", seed="2")
    made = visitor.board.ask(f"/api/v1{sent.headers['location']}").json["spec"]
    assert made["boxes"] == [] and made["tile_set"] == known["tile_set"]
    assert visitor.send("/submit", of="zz", prompt="a table").status == 404


def test_a_variation_as_its_page_has_it_is_the_same_image_with_another_seed(visitor: Visitor) -> None:
    box = {"prompt": "a mug", "x": 0, "y": 0, "width": 0.5, "height": 1, "weight": 0.25}
    image = {"prompt": "a table", "size": "256x128", "queue": "forms", "boxes": [box], "guidance_scale": 3}
    original = visitor.board.ask("/api/v1/jobs", "POST", image).json["job"]
    page = visitor.board.ask(f"/submit?job={original}").body.decode().partition('id="batch"')[0]
    fields = dict(re.findall(r'<input name="(\w+)" value="([^"]*)"', page))
    areas = re.findall(r'<textarea name="(\w+)"[^>]*>(.*?)</textarea>', page, re.DOTALL)
    fields |= {name: html.unescape(text) for name, text in areas}
    fields |= dict(re.findall(r'<select name="(\w+)">.*?<option selected>([^<]*)', page))
    sent = visitor.send("/submit", **fields, of=original)
    assert sent.status == 303, sent.body
    made = visitor.board.ask(f"/api/v1{sent.headers['location']}").json["spec"]
    known = visitor.board.ask(f"/api/v1/jobs/{original}").json["spec"]
    assert made == known | {"seed": known["seed"] + 1} and made["boxes"][0]["weight"] == 0.25


def test_a_batch_is_checked_before_it_is_sent_and_the_form_is_kept(visitor: Visitor) -> None:
    text = "SKU;Title;Colour;Spare\r\nA-1;Vase groß;rot;x\r\nA-2;Schüssel;blau;y\r\n"
    fields = {"template": "ein {Colour}er {Title}", "id_column": "SKU", "size": "64x64", "seeds": "2"}
    checked = visitor.upload("feed.csv", text, **fields, queue="forms", action="check")
    page = checked.body.decode()
    assert checked.status == 200
    assert "4 images would be queued" in page and "ein roter Vase groß" in page
    assert "read with a semicolon between columns" in page and "ignored 1 column" in page
    for name, value in fields.items():
        assert f'name="{name}" value="{html.escape(value)}"' in page
    token = re.search(r'name="upload" value="([\w-]+)"', page)
    assert token is not None and "feed.csv is here" in page
    sent = visitor.send("/submit/batch", **fields, queue="forms", upload=token[1], action="submit")
    assert sent.status == 303, sent.body
    batch = sent.headers["location"].partition("?")[0].rpartition("/")[2]
    rows = visitor.board.ask(f"/api/v1/batches/{batch}").json["rows"]
    assert [row["custom_id"] for row in rows] == ["A-1", "A-1-s2", "A-2", "A-2-s2"]
    gone = visitor.send("/submit/batch", **fields, upload=token[1], action="submit")
    assert gone.status == 400 and b"choose a file" in gone.body


def test_errors_of_an_upload_keep_the_file_and_name_it(visitor: Visitor) -> None:
    text = "custom_id,product,steps\n" + "".join(f"{n},vase,{n}x\n" for n in range(50))
    refused = visitor.upload("feed.csv", text, template="a {product}", size="64x64", grid="seed=1,2")
    page = html.unescape(refused.body.decode())
    assert refused.status == 400 and "'feed.csv' has 50 bad rows" in page and "/tmp" not in page
    assert "lines 2, 3, 4 and 47 more: steps: '0x' is not a whole number" in page
    assert "seed=1,2" in page and re.search(r'name="upload" value="[\w-]+"', page)
    wrong = visitor.upload("feed.csv", "a;b\n1;2\n", template="a {product}")
    assert wrong.status == 400 and b"names product, which is no column" in wrong.body


def test_one_prompt_with_wildcards_is_a_batch(visitor: Visitor) -> None:
    sent = visitor.send("/submit", prompt="a {red|blue} bowl", size="64x64", seed="random", queue="forms")
    assert sent.status == 303 and sent.headers["location"].startswith("/batches/")
    rows = visitor.board.ask(f"/api/v1{sent.headers['location']}").json["rows"]
    assert [row["prompt"] for row in rows] == ["a red bowl", "a blue bowl"]
