"""Whatever boto3 raises is one of ours, with a sentence for a person."""

from __future__ import annotations

import inspect

import pytest
from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from infra.errors import (
    StoreDenied,
    StoreError,
    StoreMissing,
    StorePermanent,
    StoreRetryable,
    StoreUnusable,
)
from infra.store.s3_errors import kind_of, translated

ROOTS = (boto.BotoCoreError, boto.ClientError)
CLASSES = [
    each
    for _, each in inspect.getmembers(boto, inspect.isclass)
    if issubclass(each, Exception) and not issubclass(each, Warning) and each not in ROOTS
]


@pytest.mark.parametrize("each", CLASSES, ids=lambda each: str(each.__name__))
def test_every_error_of_the_library_is_mapped(each: type[Exception]) -> None:
    if issubclass(each, ClientError):
        raised: Exception = each({"Error": {"Code": "SlowDown"}}, "PutObject")
    else:
        raised = each.__new__(each)
        Exception.__init__(raised, "planned")
    kind = kind_of(raised)
    assert kind is not None and issubclass(kind, StoreError), f"{each.__name__} is new; say what it means"


def test_an_error_that_nobody_knows_is_noticed() -> None:
    class New(BotoCoreError):  # type: ignore[misc]
        pass

    assert kind_of(New()) is None
    with pytest.raises(StorePermanent), translated("s3://studio/a"):
        raise New()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NoSuchKey", StoreMissing),
        (404, "404", StoreMissing),
        (404, "NoSuchBucket", StoreUnusable),
        (403, "AccessDenied", StoreDenied),
        (403, "403", StoreDenied),
        (403, "RequestTimeTooSkewed", StoreUnusable),
        (403, "SignatureDoesNotMatch", StoreUnusable),
        (403, "InvalidAccessKeyId", StoreUnusable),
        (400, "ExpiredToken", StoreUnusable),
        (400, "AuthorizationHeaderMalformed", StoreUnusable),
        (400, "400", StoreUnusable),
        (301, "PermanentRedirect", StoreUnusable),
        (301, "301", StoreUnusable),
        (400, "EntityTooLarge", StorePermanent),
        (409, "ConditionalRequestConflict", StoreRetryable),
        (429, "TooManyRequests", StoreRetryable),
        (500, "InternalError", StoreRetryable),
        (503, "SlowDown", StoreRetryable),
        (507, "InsufficientStorage", StoreRetryable),
    ],
)
def test_what_a_store_answers(status: int, code: str, kind: type[StoreError]) -> None:
    answer = {
        "Error": {"Code": code, "Message": "planned"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    with pytest.raises(StoreError) as raised, translated("s3://studio/a/b"):
        raise ClientError(answer, "GetObject")
    assert type(raised.value) is kind
    assert str(raised.value).startswith("s3://studio"), "it says where"


@pytest.mark.parametrize("error", [ResponseParserError("html"), ConnectionResetError("reset")])
def test_what_breaks_below_the_library_may_pass(error: Exception) -> None:
    with pytest.raises(StoreRetryable, match="CHORALE_S3_ENDPOINT_URL"), translated("s3://studio/a"):
        raise error
