"""Rendering straight into a bucket: what a user sees, and what is refused before anything is rendered."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.auth
import pytest
import pyvips
from click.testing import CliRunner

from infra.store.s3_client import forget_clients
from jobs.cli.main import cli, main
from tests.support.buckets import Bucket, credentials
from tests.support.cli import last_json, start, wait_until
from tests.support.faults import Fault, fault_proxy

SMALL = ("a red vase", "--size", "256x192", "--steps", "3", "--tile-size", "64", "--seed", "3")


@pytest.fixture
def bucket(swift: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bucket]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHORALE_STORE_PATIENCE_S", "100")
    forget_clients()
    with credentials(swift):
        yield swift
    forget_clients()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The oracle: one rank, into a folder."""
    out = str(tmp_path_factory.mktemp("alone") / "image")
    return str(chorale("render", *SMALL, "--ranks", "1", "--out", out)["root"])


def chorale(*words: str, **environment: str) -> dict[str, Any]:
    result = CliRunner().invoke(cli, [*words, "--json"], env=environment, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return last_json(result.stdout)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0), capsys.readouterr().err


def test_an_image_in_a_bucket_is_the_image_in_a_folder(bucket: Bucket, root: str, tmp_path: Path) -> None:
    url = bucket.fresh_url()
    done = chorale("render", *SMALL, "--ranks", "2", "--out", url)
    assert (done["root"], done["manifest"]) == (root, f"{url}/manifest.json")
    assert chorale("render", *SMALL, "--ranks", "1", "--out", url)["already"] is True
    assert chorale("verify", url)["passes"] is True
    store = bucket.store(url)
    tiles = json.loads(store.get("manifest.json"))["tiles"].keys()
    others = {"image.dzi", "preview.webp", "manifest.json", "spec.json"}
    assert {entry.key for entry in store.entries()} == tiles | others, "nothing of the work is left"
    copy = chorale("download", url, "copy")
    assert (copy["root"], copy["tiles"]) == (root, len(tiles))
    assert chorale("verify", "copy")["passes"] is True
    assert chorale("download", url, "copy")["bytes"] < copy["bytes"], "tiles that are there are kept"
    for image, target in ((url, "vase.tif"), ("copy", "copy.tif")):
        assert CliRunner().invoke(cli, ["export", image, target]).exit_code == 0
    vase, other = pyvips.Image.new_from_file("vase.tif"), pyvips.Image.new_from_file("copy.tif")
    assert (vase.width, vase.height) == (256, 192) and (vase - other).abs().max() == 0
    store.put(sorted(tiles)[0], b"torn", "image/png")
    store.delete(sorted(tiles)[1])
    torn = CliRunner().invoke(cli, ["verify", url])
    assert torn.exit_code == 3
    assert f"altered: {sorted(tiles)[0]}" in torn.stdout and f"missing: {sorted(tiles)[1]}" in torn.stdout
    assert not list(tmp_path.glob(".*")), "no temporary files are left"


def test_a_store_that_is_cut_in_the_middle_is_waited_for(bucket: Bucket, root: str, tmp_path: Path) -> None:
    with fault_proxy(bucket.endpoint) as proxy:
        url = bucket.fresh_url()
        words = ("render", *SMALL, "--ranks", "2", "--checkpoint-every", "0", "--out", url, "--json")
        with (tmp_path / "log").open("w") as log:
            process = start(*words, log=log, CHORALE_S3_ENDPOINT_URL=proxy.url)
            wait_until(lambda: proxy.seen("PUT", "work/checkpoint"), 120)
            proxy.cut()
            before = len(proxy.requests)
            wait_until(lambda: len(proxy.requests) > before + 6, 120)
            assert process.poll() is None
            proxy.mend()
            assert process.wait(200) == 0, (tmp_path / "log").read_text()
    assert last_json((tmp_path / "log").read_text())["root"] == root
    assert chorale("verify", url)["passes"] is True


def test_sigterm_after_the_last_step_ends_a_render_whose_store_hangs(bucket: Bucket, tmp_path: Path) -> None:
    with fault_proxy(bucket.endpoint) as proxy:
        proxy.faults.append(Fault(kind="hang", times=1000, path="image_files/"))
        words = ("render", *SMALL, "--ranks", "2", "--out", bucket.fresh_url())
        log, environment = tmp_path / "log", {"CHORALE_S3_ENDPOINT_URL": proxy.url}
        with log.open("w") as file:
            process = start(*words, log=file, CHORALE_STORE_PATIENCE_S="3600", **environment)
        wait_until(lambda: proxy.seen("PUT", "image_files/"), 120)
        process.terminate()
        # Before, it waited for as long as the store's patience lasted.
        assert process.wait(120) == 4, log.read_text()


def test_a_lost_answer_to_the_manifest_is_done_not_a_conflict(bucket: Bucket, root: str) -> None:
    with fault_proxy(bucket.endpoint) as proxy:
        proxy.faults.append(Fault(kind="lost answer", path="manifest.json"))
        url = bucket.fresh_url()
        words = ("render", *SMALL, "--ranks", "1", "--out", url)
        done = chorale(*words, CHORALE_S3_ENDPOINT_URL=proxy.url)
        assert (done["root"], done["already"]) == (root, False)
        assert proxy.seen("PUT", "manifest.json") == 2, "tried again by the client"


WRONG = {
    "secret key": ({"AWS_SECRET_ACCESS_KEY": "planted-wrong-secret"}, "refuses the signature"),
    "access key": ({"AWS_ACCESS_KEY_ID": "nobody"}, "refuses the signature"),
    "no permission": (
        {"AWS_ACCESS_KEY_ID": "studio:guest", "AWS_SECRET_ACCESS_KEY": "guest-secret-key"},
        "denies access",
    ),
    "endpoint down": ({"CHORALE_S3_ENDPOINT_URL": "http://127.0.0.1:9"}, "does not respond correctly"),
    "no TLS there": ({"CHORALE_S3_ENDPOINT_URL": "https"}, "TLS connection failed"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("verb", ["render", "verify", "check"])
def test_what_is_wrong_with_a_store_is_said_before_anything_is_done(
    bucket: Bucket, name: str, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, sentence = WRONG[name]
    for key, value in changes.items():
        monkeypatch.setenv(key, bucket.endpoint.replace("http:", "https:") if value == "https" else value)
    url = bucket.fresh_url()
    words = {"render": ["render", "x", "--out", url], "check": ["store", "check", url]}
    code, text = refused(capsys, *words.get(verb, [verb, url]))
    assert (code, text.count("\n")) == (6, 1), text
    assert sentence in text
    assert not re.search("secret-key|planted", text)


def test_a_bucket_that_is_not_there_and_a_clock_that_is_wrong(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = refused(capsys, "render", "x", "--out", "s3://nowhere/x")
    assert code == 6 and "the bucket does not exist" in text

    def yesterday(remove_tzinfo: bool = True) -> datetime.datetime:
        moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        return moment.replace(tzinfo=None) if remove_tzinfo else moment

    monkeypatch.setattr(botocore.auth, "get_current_datetime", yesterday)
    code, text = refused(capsys, "render", "x", "--out", bucket.fresh_url())
    assert code == 6 and "clock" in text and text.count("\n") == 1


def test_a_bucket_of_another_region(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = bucket.fresh_url()
    with fault_proxy(bucket.endpoint) as proxy:
        monkeypatch.setenv("CHORALE_S3_ENDPOINT_URL", proxy.url)
        moved = {"status": "301 Moved Permanently", "code": "PermanentRedirect"}
        proxy.faults = [
            Fault(kind="status", times=99, method=method, **moved) for method in ("HEAD", "GET", "PUT")
        ]
        code, text = refused(capsys, "render", "x", "--out", url)
    assert (code, text.count("\n")) == (6, 1), text
    assert "another region; set CHORALE_S3_REGION" in text
    monkeypatch.setenv("CHORALE_S3_ENDPOINT_URL", bucket.endpoint)
    monkeypatch.setenv("CHORALE_S3_REGION", "eu-west-9")
    forget_clients()
    code, text = refused(capsys, "render", "x", "--out", url)
    assert (code, text.count("\n")) == (6, 1) and "CHORALE_S3_REGION" in text, text


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("s3://", "invalid bucket name"),
        ("s3://Big_Bucket/x", "invalid bucket name"),
        ("s3://key:planted-secret@studio/x", "credentials in AWS_ACCESS_KEY_ID"),
        ("s3://studio/a//b", "invalid prefix"),
        ("s3://studio/../b", "invalid prefix"),
        ("gs://studio/x", "unknown scheme"),
        ("s3:/studio/x", "no slashes after the scheme"),
        ("file://x", "not an absolute path"),
    ],
)
@pytest.mark.parametrize("verb", ["render", "verify", "export", "download", "check"])
def test_a_url_that_cannot_be(
    url: str, sentence: str, verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    words = {"render": ["render", "x", "--out"], "check": ["store", "check"], "verify": ["verify"]}
    code, text = refused(capsys, *(words[verb] + [url] if verb in words else [verb, url, "target"]))
    assert (code, text.count("\n")) == (2, 1), text
    assert sentence in text and "planted" not in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CHORALE_S3_CHECKSUMS", "sometimes", "when_supported, when_required"),
        ("CHORALE_S3_ADDRESSING", "paths", "auto, path, virtual"),
        ("CHORALE_S3_CONDITIONAL_WRITES", "maybe", "yes, no"),
        ("CHORALE_S3_ENDPOINT_URL", "s3.example.com", "https://s3.example.com"),
        ("CHORALE_S3_ENDPOINT_URL", "https://a:planted@s3.example.com", "AWS_ACCESS_KEY_ID"),
        ("CHORALE_S3_CA_BUNDLE", "/no/such/file.pem", "PEM"),
        ("CHORALE_STORE_PATIENCE_S", "long", "store_patience_s"),
    ],
)
def test_settings_that_cannot_be(
    bucket: Bucket, name: str, value: str, words: str, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    code, text = refused(capsys, "render", "x", "--out", bucket.fresh_url())
    assert (code, text.count("\n")) == (2, 1), text
    assert words in text and "planted" not in text


def test_a_bucket_is_made_ready_and_checked(moto: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    with credentials(moto):
        forget_clients()
        for _ in range(2):
            made = chorale("store", "init", "s3://another/images", "--origin", "https://shop.example")
            assert made["usable"] and all(finding["works"] for finding in made["findings"])
        checked = chorale("store", "check", "s3://another/images")
        assert all(finding["works"] for finding in checked["findings"])
        assert "https://shop.example" in checked["findings"][-1]["detail"]
        code, text = refused(capsys, "store", "check", "s3://nowhere/x")
    forget_clients()
    assert (code, text.count("\n")) == (6, 1)


def test_what_a_store_cannot_do_is_said(bucket: Bucket) -> None:
    checked = chorale("store", "check", bucket.fresh_url())
    assert checked["usable"] is True
    lacking = [finding["name"] for finding in checked["findings"] if not finding["works"]]
    assert lacking == ["CORS"], "Swift's S3 API has no CORS rules, and a farm can do without"


def test_a_store_that_does_not_heed_conditions_is_told_apart(moto: Bucket) -> None:
    bucket = moto
    with credentials(bucket), fault_proxy(bucket.endpoint) as proxy:
        proxy.unheeded = b"if-none-match:"
        environment = {"CHORALE_S3_ENDPOINT_URL": proxy.url}
        checked = chorale("store", "check", bucket.fresh_url(), **environment)
        (finding,) = [each for each in checked["findings"] if each["name"] == "conditional writes"]
        assert (finding["works"], finding["needed"]) == (False, False)
        assert "CHORALE_S3_CONDITIONAL_WRITES=no" in finding["detail"]
        environment["CHORALE_S3_CONDITIONAL_WRITES"] = "no"
        checked = chorale("store", "check", bucket.fresh_url(), **environment)
        (finding,) = [each for each in checked["findings"] if each["name"] == "conditional writes"]
        assert (finding["works"], finding["detail"]) == (True, "replaced by reading back")
