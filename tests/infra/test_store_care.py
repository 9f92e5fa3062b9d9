"""What a store's commands say of other people's buckets, checksums and folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from sqlalchemy import text

from infra.database import Database
from infra.database_url import parse_database_url, sqlite_url
from infra.errors import StoreUnusable
from infra.store.check import check_store, make_bucket
from infra.store.local import LocalStore
from infra.store.s3_errors import translated
from tests.support.buckets import credentials, moto_server


@pytest.mark.parametrize(
    ("status", "code", "fix"),
    [
        (411, "MissingContentLength", "CHORALE_S3_CHECKSUMS=when_required"),
        (411, "", "CHORALE_S3_CHECKSUMS=when_required"),
        (409, "BucketAlreadyExists", "belongs to somebody else"),
    ],
)
def test_an_answer_names_its_fix_and_no_second_try(status: int, code: str, fix: str) -> None:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    with pytest.raises(StoreUnusable, match=fix) as caught, translated("s3://studio"):
        raise ClientError(answer, "PutObject")  # type: ignore[arg-type]
    assert "try again" not in str(caught.value)


def test_a_bucket_that_is_there_was_not_created() -> None:
    """The region matters: in us-east-1 S3 answers a second creation as it does the first."""
    with moto_server() as bucket, credentials(bucket):
        store = bucket.store("s3://chorale-twice/images")
        assert make_bucket(store, "*")[0].detail == "created"
        assert make_bucket(store, "*")[0].detail == "exists already"


def test_a_check_leaves_no_folder(tmp_path: Path) -> None:
    assert all(finding.works for finding in check_store(LocalStore(tmp_path / "images")))
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "images"])


def test_presigned_urls_are_checked_with_the_store_s_own_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infra.store import check
    from infra.store.s3 import S3Store
    from infra.store.s3_client import S3Options

    seen: list[str | None] = []
    monkeypatch.setattr(check.ssl, "create_default_context", lambda cafile: seen.append(cafile))
    check._trust(S3Store("studio", "", S3Options(ca_bundle="studio.pem")))
    monkeypatch.setenv("AWS_CA_BUNDLE", "aws.pem")
    check._trust(S3Store("studio", "", S3Options()))
    assert seen == ["studio.pem", "aws.pem"]


@pytest.mark.parametrize("name", ["a?b", "a%41", "a%3Fb", "a#b", "100%", "a b", "é"])
def test_a_home_may_have_any_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / name / "farm.db"
    file.parent.mkdir()
    assert parse_database_url(sqlite_url(file)).database == str(file)
    database = Database(sqlite_url(file))
    with database.write() as connection:
        connection.execute(text("create table t (a int)"))
    database.close()
    assert os.listdir(tmp_path) == [name] and file.exists()
