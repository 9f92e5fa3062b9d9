"""Files that are signed with a certificate of the test, read by C2PA's own reader."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
import pytest
import pyvips
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from PIL import Image

from infra.database import Database
from infra.settings import Settings, read_settings
from jobs.cli.main import main
from jobs.farm import Farm
from jobs.follow_ups import do_follow_up
from jobs.node.follow_up_rounds import FollowUpRounds
from jobs.renditions.channel import Rendition
from jobs.renditions.claim import GENERATION, changes_of, claim_of
from jobs.renditions.farm import ask_for, list_renditions, store_key, wanted_channels
from jobs.renditions.maker import make_rendition
from jobs.renditions.signing import Signer, open_signer
from render.errors import BadInput
from render.output.encode import CONTENT_TYPES
from render.output.manifest import Manifest, parse_manifest
from render.spec import COMPOSITE
from tests.support.certificates import DAY, Issued, issue
from tests.support.finished_batch import make_batch, settings_of

FORMATS = ("jpeg", "png", "webp", "tiff")


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    return issue(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A farm's folder, and its batch of two finished images."""
    folder = tmp_path_factory.mktemp("farm")
    return folder, make_batch(folder, ("vase", "mug"), done=2)


@pytest.fixture
def batch(farm: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The batch, for commands of the test."""
    for name, value in settings_of(farm[0]).items():
        monkeypatch.setenv(name, value)
    return farm[1]


@pytest.fixture
def signing(issued: Issued, monkeypatch: pytest.MonkeyPatch) -> Issued:
    """Commands of the test sign."""
    for name, value in issued.environment.items():
        monkeypatch.setenv(name, value)
    return issued


def settings_with(issued: Issued, **more: str) -> Settings:
    return read_settings({"c2pa_certificate": str(issued.certificate), "c2pa_key": str(issued.key), **more})


def signer_of(issued: Issued) -> Signer:
    found = open_signer(settings_with(issued))
    assert found is not None
    return found


def read(issued: Issued, data: bytes, format: str, sidecar: bytes | None = None) -> dict[str, Any]:
    """The claim of a file, which has to be valid, intact and of a certificate that the test trusts."""
    trust = {"trust": {"user_anchors": issued.root}}
    with c2pa.Context.from_dict(trust) as context:
        reader = c2pa.Reader(format, io.BytesIO(data), sidecar, context=context)
        with reader:
            store = json.loads(reader.json())
    assert store["validation_state"] == "Trusted", store.get("validation_results")
    return store["manifests"][store["active_manifest"]]  # type: ignore[no-any-return]


def assertion(claim: dict[str, Any], label: str) -> Any:
    return next(each["data"] for each in claim["assertions"] if each["label"].startswith(label))


def actions(claim: dict[str, Any]) -> list[dict[str, Any]]:
    return assertion(claim, "c2pa.actions")["actions"]  # type: ignore[no-any-return]


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0)


def picture(side: int = 96) -> Any:
    noise = np.random.default_rng(3).integers(0, 255, (side, side, 3), np.uint8)
    return pyvips.Image.new_from_array(noise).copy(interpretation="srgb")


def pixels(data: bytes) -> Any:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def manifest(**spec: Any) -> Manifest:
    """Of an image as a render writes it, with these values of a spec."""
    tile = {"sha256": "1" * 64, "bytes": 1}
    document = {
        "schema": 1,
        "digest": "a" * 64,
        "root": "b" * 64,
        "spec": {"prompt": "a secret vase", **spec},
        "width": 1,
        "height": 1,
        "tile_size": 512,
        "levels": [[1, 1]],
        "format": "png",
        "tiles": {"image_files/0/0_0.png": tile},
        "versions": {"chorale": "9.9"},
    }
    return parse_manifest(json.dumps(document).encode(), "here")


def sign_with(signer: Signer, format: str, claim: dict[str, Any]) -> Callable[[bytes], bytes]:
    return partial(signer.signed, format=CONTENT_TYPES[format], claim=claim)


@pytest.mark.parametrize("format", FORMATS)
def test_a_signature_changes_no_pixel_and_a_reader_trusts_it(issued: Issued, format: Any) -> None:
    wanted = Rendition(width=64, height=64, format=format)
    claim = claim_of(manifest(seed=7), format=CONTENT_TYPES[format], changes=changes_of(wanted, 96, 96))
    plain = make_rendition(picture(), wanted)
    signed = make_rendition(picture(), wanted, sign=sign_with(signer_of(issued), format, claim))
    assert np.array_equal(pixels(plain), pixels(signed))
    found = read(issued, signed, CONTENT_TYPES[format])
    assert found["claim_generator_info"][0]["name"] == "Chorale"
    assert found["signature_info"]["common_name"] == "Test Studio"
    created, resized = actions(found)
    assert created["action"] == "c2pa.created"
    assert created["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert created["softwareAgent"] == {"name": "Chorale", "version": "9.9"}
    assert resized["action"] == "c2pa.resized"
    assert assertion(found, GENERATION)["root"] == "b" * 64
    assert "secret" not in json.dumps(found) and b"secret" not in signed
    damaged = bytearray(signed)
    damaged[-40 if format != "png" else len(damaged) // 2] ^= 1
    with pytest.raises((AssertionError, c2pa.C2paError)):
        read(issued, bytes(damaged), CONTENT_TYPES[format])


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["es384", "es512", "ed25519", "ps256"],
)
def test_every_kind_of_key_signs_and_names_its_algorithm(tmp_path: Path, key: Any) -> None:
    issued = issue(tmp_path, key)
    claim = claim_of(manifest(), format="image/png")
    signed = make_rendition(
        picture(16), Rendition(format="png"), sign=sign_with(signer_of(issued), "png", claim)
    )
    algorithm = read(issued, signed, "image/png")["signature_info"]["alg"].lower()
    assert algorithm == signer_of(issued).credentials.algorithm


def test_pictures_that_went_in_are_ingredients_without_their_names(issued: Issued) -> None:
    given = {
        "init": {"path": "/home/anna/private.jpg", "digest": "c" * 64},
        "control": [{"path": "edges.png", "digest": "d" * 64, "kind": "canny"}],
        "reference": [{"path": "one.png", "digest": "e" * 64}, {"path": "two.png", "digest": "f" * 64}],
        "source_type": COMPOSITE,
    }
    signer = signer_of(issued)
    kept = manifest(**given).model_copy(update={"kept": {"pixels": 9, "own_scale": True}})
    for image, relationship in ((manifest(**given), "inputTo"), (kept, "componentOf")):
        claim = claim_of(image, format="image/png")
        sign = sign_with(signer, "png", claim)
        found = read(issued, make_rendition(picture(16), Rendition(format="png"), sign=sign), "image/png")
        ingredients = {each["title"]: each for each in found["ingredients"]}
        assert set(ingredients) == {
            "init image", "control picture", "reference picture", "reference picture 2",
        }  # fmt: skip
        assert ingredients["init image"]["relationship"] == relationship
        assert ingredients["init image"]["instance_id"] == "sha256:" + "c" * 64
        assert ingredients["control picture"]["relationship"] == "inputTo"
        assert actions(found)[0]["digitalSourceType"].endswith("/compositeWithTrainedAlgorithmicMedia")
        assert [each["action"] for each in actions(found)].count("c2pa.placed") == (
            relationship == "componentOf"
        )
        assert "private" not in json.dumps(found)


def test_the_bytes_of_a_file_are_those_with_its_signature(issued: Issued) -> None:
    sign = sign_with(signer_of(issued), "jpeg", claim_of(manifest(), format="image/jpeg"))
    image = picture(300)
    plain = len(make_rendition(image, Rendition()))
    whole = len(make_rendition(image, Rendition(), sign=sign))
    assert whole > plain + 1000
    for limit in (plain, whole - 1, whole * 2 // 3):
        signed = make_rendition(image, Rendition(max_bytes=limit), sign=sign)
        assert limit * 0.5 < len(signed) <= limit
        read(issued, signed, "image/jpeg")
    with pytest.raises(BadInput, match="use a smaller size"):
        make_rendition(image, Rendition(max_bytes=4000), sign=sign)
    with pytest.raises(BadInput, match="use jpeg or webp"):
        make_rendition(image, Rendition(max_bytes=plain, format="png"), sign=sign)


def test_an_export_is_signed_and_has_its_prompt_only_where_that_is_asked_for(
    batch: str, signing: Issued, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "out" / "{custom_id}.jpg")
    assert run("export", "--batch", batch, target, "--size", "64x64", "--max-bytes", "20kB") == 0
    assert run("export", "--batch", batch, target, "--size", "64", "--publish-prompt", "--force") == 0
    data = (tmp_path / "out" / "vase.jpg").read_bytes()
    parameters = json.loads(assertion(read(signing, data, "image/jpeg"), GENERATION)["parameters"])
    assert parameters["prompt"] == "a vase"
    for ending in ("png", "jpg", "webp"):
        whole = tmp_path / f"whole.{ending}"
        job = read_job(batch, capsys)
        assert run("export", job, str(whole)) == 0
        claim = read(signing, whole.read_bytes(), CONTENT_TYPES["jpeg" if ending == "jpg" else ending])
        assert "a vase" not in json.dumps(claim)
        assert [each["action"] for each in actions(claim)] == ["c2pa.created"]


def read_job(batch: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The id of a finished job of a batch."""
    capsys.readouterr()
    assert run("list", "--batch", batch, "--state", "done", "--json") == 0
    return str(json.loads(capsys.readouterr().out)["jobs"][0]["id"])


def test_a_bigtiff_has_its_claim_beside_it(
    batch: str,
    issued: Issued,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job, whole = read_job(batch, capsys), tmp_path / "whole.tif"
    assert run("export", job, str(tmp_path / "plain.tif")) == 0
    for name, value in issued.environment.items():
        monkeypatch.setenv(name, value)
    capsys.readouterr()
    assert run("export", job, str(whole), "--json") == 0
    files = [Path(each["file"]).name for each in json.loads(capsys.readouterr().out)["files"]]
    assert files == ["whole.tif", "whole.c2pa"]
    sidecar = (tmp_path / "whole.c2pa").read_bytes()
    assert whole.read_bytes() == (tmp_path / "plain.tif").read_bytes()
    claim = read(issued, whole.read_bytes(), "image/tiff", sidecar)
    assert actions(claim)[0]["action"] == "c2pa.created"
    with pytest.raises(AssertionError):
        read(issued, whole.read_bytes() + b"\0", "image/tiff", sidecar)
    whole.unlink()
    assert run("export", job, str(whole)) == 2
    assert "exists; use --force" in capsys.readouterr().err
    assert not whole.exists()
    assert run("export", job, str(whole), "--force") == 0


def _expired(folder: Path) -> dict[str, str]:
    return issue(folder, begins=-9 * DAY, ends=-DAY).environment


def _future(folder: Path) -> dict[str, str]:
    return issue(folder, begins=DAY).environment


def _of_another(folder: Path) -> dict[str, str]:
    one, other = issue(folder, name="one"), issue(folder, name="other")
    return one.environment | {"CHORALE_C2PA_KEY": str(other.key)}


def _for_servers(folder: Path) -> dict[str, str]:
    return issue(folder, usage=ExtendedKeyUsageOID.SERVER_AUTH).environment


def _missing(folder: Path) -> dict[str, str]:
    return issue(folder).environment | {"CHORALE_C2PA_KEY": str(folder / "none.key")}


def _without_key(folder: Path) -> dict[str, str]:
    return {"CHORALE_C2PA_CERTIFICATE": str(issue(folder).certificate)}


def _key_alone(folder: Path) -> dict[str, str]:
    return {"CHORALE_C2PA_KEY": str(issue(folder).key)}


def _wrong_algorithm(folder: Path) -> dict[str, str]:
    return issue(folder).environment | {"CHORALE_C2PA_ALGORITHM": "ps256"}


def _unknown_algorithm(folder: Path) -> dict[str, str]:
    return issue(folder).environment | {"CHORALE_C2PA_ALGORITHM": "md5"}


def _encrypted(folder: Path) -> dict[str, str]:
    found = issue(folder)
    key = serialization.load_pem_private_key(found.key.read_bytes(), None)
    lock = serialization.BestAvailableEncryption(b"word")
    form = serialization.PrivateFormat.PKCS8
    found.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, lock))
    return found.environment


def _turned_round(folder: Path) -> dict[str, str]:
    found = issue(folder)
    end = "-----END CERTIFICATE-----\n"
    first, second, _ = found.certificate.read_text().split(end)
    other = issue(folder / "other")
    third = other.certificate.read_text().split(end)[1]
    found.certificate.write_text(first + end + third + end + second + end)
    return found.environment


def _no_certificates(folder: Path) -> dict[str, str]:
    found = issue(folder)
    shutil.copy(found.key, found.certificate)
    return found.environment


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (_expired, "has expired on"),
        (_future, "is not valid before"),
        (_of_another, "is not the key of the first certificate"),
        (_for_servers, "cannot sign files for C2PA"),
        (_missing, "cannot be read (No such file or directory)"),
        (_without_key, "needs c2pa_key"),
        (_key_alone, "needs c2pa_certificate"),
        (_wrong_algorithm, "does not fit the key; use es256"),
        (_unknown_algorithm, "is unknown; use one of"),
        (_encrypted, "is encrypted; decrypt it"),
        (_turned_round, "is in the wrong order"),
        (_no_certificates, "holds no PEM certificates"),
    ],
)
def test_what_cannot_sign_is_one_sentence_before_anything_is_written_or_queued(
    batch: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    made: Callable[[Path], dict[str, str]],
    sentence: str,
) -> None:
    for name, value in made(tmp_path / "certificates").items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "out"
    for words in (
        ("export", "--batch", batch, str(out / "{n}.jpg"), "--size", "64x64"),
        ("export", "--batch", batch, "--channel", "ebay", "--detach"),
        ("submit", "a vase", "--size", "64x64", "--seed", "77", "--channel", "ebay"),
    ):
        assert run(*words) == 2, words
        told = capsys.readouterr().err
        assert sentence in told and told.count("\n") == 1
    assert not out.exists()
    assert run("list", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["jobs"]) == 2


def test_a_time_stamp_authority_that_is_away_is_told_and_leaves_no_file(
    batch: str,
    signing: Issued,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CHORALE_C2PA_TIMESTAMP_URL", "http://127.0.0.1:9/tsa")
    assert run("export", "--batch", batch, str(tmp_path / "out" / "{custom_id}.jpg"), "--size", "64") == 6
    assert "no time stamp" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.jpg"))


def test_workers_sign_the_files_that_the_farm_makes(
    farm: tuple[Path, str], issued: Issued, tmp_path: Path
) -> None:
    (folder, batch), images = farm, str(farm[0] / "images")
    database = Database(settings_of(folder)["CHORALE_DATABASE_URL"])
    settings = settings_with(issued, store_url=images)
    farm_now = Farm(settings=settings, database=database, url="")
    with database.write() as connection:
        ask_for(connection, batch, wanted_channels(["ebay"], files=False, settings=settings))
    FollowUpRounds(farm_now, None, None).look()
    with database.read() as connection:
        rows = list_renditions(connection, batch)
    assert len(rows) == 2 and all(row["made"] for row in rows)
    for row in rows:
        data = (folder / "images" / store_key(batch, "ebay", row["file"])).read_bytes()
        assert len(data) == row["bytes"]
        read(issued, data, "image/jpeg")
    # Its certificate has expired since: it is tried again, and the batch says why.
    expired = issue(tmp_path / "expired", begins=-9 * DAY, ends=-DAY)
    late = Farm(settings=settings_with(expired, store_url=images), database=database, url="")
    with database.write() as connection:
        ask_for(connection, batch, wanted_channels(["shopify"], files=False))
    FollowUpRounds(late, None, None).look()
    with database.read() as connection:
        problems = [row["problem"] for row in list_renditions(connection, batch, "shopify")]
    assert len(problems) == 2 and all("has expired" in problem for problem in problems)
    assert do_follow_up(late, "nothing").retry_s is None
    database.close()
