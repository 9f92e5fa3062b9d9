"""Translates botocore's errors; the only place that does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from infra.errors import (
    StoreDenied,
    StoreError,
    StoreMissing,
    StorePermanent,
    StoreRetryable,
    StoreUnusable,
)

Kind = type[StoreError]

_CLASSES: dict[Kind, tuple[type[Exception], ...]] = {
    StoreRetryable: (
        boto.HTTPClientError,
        boto.IncompleteReadError,
        boto.ChecksumError,
        boto.FlexibleChecksumError,
        boto.AwsChunkedWrapperError,
        boto.CapacityNotAvailableError,
        boto.MetadataRetrievalError,
        # Expiring credentials are fetched again in the middle of a render; their server may be unreachable.
        boto.CredentialRetrievalError,
        boto.ConnectionError,
    ),
    StoreUnusable: (
        boto.SSLError,
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.UnknownCredentialError,
        boto.RefreshWithMFAUnsupportedError,
        boto.LoginError,
        boto.SSOError,
        boto.NoAuthTokenError,
        boto.TokenRetrievalError,
        boto.UnknownTokenProviderError,
        boto.ProfileNotFound,
        boto.ConfigNotFound,
        boto.ConfigParseError,
        boto.InvalidConfigError,
        boto.InvalidDefaultsMode,
        boto.InvalidRetryConfigurationError,
        boto.InvalidProxiesConfigError,
        boto.InvalidIMDSEndpointError,
        boto.InvalidIMDSEndpointModeError,
        boto.InvalidChecksumConfigError,
        boto.InvalidS3AddressingStyleError,
        boto.InvalidS3UsEast1RegionalEndpointConfigError,
        boto.InvalidSTSRegionalEndpointsConfigError,
        boto.InvalidEndpointConfigurationError,
        boto.InvalidEndpointDiscoveryConfigurationError,
        boto.InvalidDNSNameError,
        boto.InvalidHostLabelError,
        boto.InvalidRegionError,
        boto.BaseEndpointResolverError,
        boto.EndpointProviderError,
        boto.ServiceNotInRegionError,
        boto.UnknownRegionError,
        boto.UnsupportedOutpostResourceError,
        boto.UnsupportedS3AccesspointConfigurationError,
        boto.UnsupportedS3ArnError,
        boto.UnsupportedS3ConfigurationError,
        boto.UnsupportedS3ControlArnError,
        boto.UnsupportedS3ControlConfigurationError,
        boto.UnsupportedServiceProtocolsError,
        boto.UnsupportedSignatureVersionError,
        boto.UnknownSignatureVersionError,
        boto.MissingDependencyException,
        boto.MD5UnavailableError,
    ),
    StorePermanent: (
        boto.ApiVersionNotFoundError,
        boto.DataNotFoundError,
        boto.InvalidExpressionError,
        boto.MissingParametersError,
        boto.OperationNotPageableError,
        boto.PaginationError,
        boto.ParamValidationError,
        boto.StubResponseError,
        boto.UndefinedModelAttributeError,
        boto.UnknownClientMethodError,
        boto.UnknownServiceStyle,
        boto.UnseekableStreamError,
        boto.ValidationError,
        boto.WaiterConfigError,
        boto.WaiterError,
    ),
}
_KIND_OF = {each: kind for kind, classes in _CLASSES.items() for each in classes}

_CODES: dict[str, tuple[Kind, str]] = {
    "NoSuchKey": (StoreMissing, "is not in the store"),
    "NoSuchBucket": (
        StoreUnusable,
        "the bucket does not exist; correct the name, or create it with chorale store init",
    ),
    "InvalidBucketName": (StoreUnusable, "is not a valid bucket name; use lower case letters, digits and -"),
    "AccessDenied": (StoreDenied, "the store denies access; give these credentials the permission"),
    "AllAccessDisabled": (StoreDenied, "the store has disabled this bucket"),
    "AccountProblem": (StoreDenied, "the store has a problem with the account"),
    "InvalidAccessKeyId": (
        StoreUnusable,
        "the store does not know the access key; check AWS_ACCESS_KEY_ID or the profile",
    ),
    "SignatureDoesNotMatch": (
        StoreUnusable,
        "the store refuses the signature; check the access key and AWS_SECRET_ACCESS_KEY or the profile",
    ),
    "InvalidToken": (StoreUnusable, "the session token is not valid; log in again"),
    "ExpiredToken": (StoreUnusable, "the session token has expired; log in again"),
    "RequestTimeTooSkewed": (
        StoreUnusable,
        "this machine's clock differs too much from the store's; set it (timedatectl set-ntp true)",
    ),
    "PermanentRedirect": (StoreUnusable, "the bucket is in another region; set CHORALE_S3_REGION to it"),
    "AuthorizationHeaderMalformed": (
        StoreUnusable,
        "the store refuses the signature's region or key; check CHORALE_S3_REGION and the credentials",
    ),
    # The response to a HEAD has no body with a reason.
    "400": (
        StoreUnusable,
        "the store rejects the request without a reason; check CHORALE_S3_REGION and the credentials",
    ),
    "IllegalLocationConstraintException": (
        StoreUnusable,
        "the bucket is in another region; set CHORALE_S3_REGION to it",
    ),
    "SlowDown": (StoreRetryable, "the store asks to slow down; try again"),
    "RequestTimeout": (StoreRetryable, "the store did not receive the whole request in time; try again"),
    "ConditionalRequestConflict": (StoreRetryable, "another writer is writing the same file; try again"),
    "OperationAborted": (StoreRetryable, "another change to the same resource is in progress; try again"),
    "BadDigest": (StoreRetryable, "the data was corrupted in transit; try again"),
    "XAmzContentSHA256Mismatch": (StoreRetryable, "the data was corrupted in transit; try again"),
    "BucketAlreadyExists": (
        StoreUnusable,
        "the bucket belongs to somebody else; choose another name, or use its owner's credentials",
    ),
    "MissingContentLength": (
        StoreUnusable,
        "the store cannot read checksums that follow the data; set CHORALE_S3_CHECKSUMS=when_required",
    ),
    "NotImplemented": (StorePermanent, "the store does not implement this operation"),
    "QuotaExceeded": (StorePermanent, "the quota is exceeded; free some space and render again"),
}
"""S3's error codes and our sentence for each; other codes are classified by HTTP status."""


def kind_of(exc: Exception) -> Kind | None:
    """The class of our error for a library's error; None if it is not mapped."""
    if isinstance(exc, ClientError):
        return _kind_of_answer(exc)[0]
    if isinstance(exc, boto.SSLError) and "EOF" in str(exc):
        # A connection closed during its handshake, not an invalid certificate.
        return StoreRetryable
    return next((_KIND_OF[each] for each in type(exc).__mro__ if each in _KIND_OF), None)


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Translate errors raised inside; `where` begins the sentence."""
    try:
        yield
    except ClientError as exc:
        kind, text = _kind_of_answer(exc)
        raise kind(f"{_subject(kind, where)}: {text}") from exc
    except BotoCoreError as exc:
        kind = kind_of(exc) or StorePermanent
        raise kind(f"{_subject(kind, where)}: {_sentence(kind, exc)}") from exc
    except RecursionError as exc:
        # botocore looks up the bucket's region, is redirected again, and recurses without end.
        kind, text = _CODES["PermanentRedirect"]
        raise kind(f"{_subject(kind, where)}: {text}") from exc
    except (ResponseParserError, HTTPError, OSError) as exc:
        # The server is not S3, or the connection broke below botocore while a body was read.
        raise StoreRetryable(f"{where}: {_sentence(StoreRetryable, exc)}") from exc


def _kind_of_answer(exc: ClientError) -> tuple[Kind, str]:
    error = exc.response.get("Error", {})
    code = str(error.get("Code", ""))
    if code in _CODES:
        return _CODES[code]
    status = int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    text = f"the store answers {code or status}: {error.get('Message') or 'without a reason'}"
    if status == 411:
        return _CODES["MissingContentLength"]
    if status == 404:
        return StoreMissing, "is not in the store"
    if status in (401, 403):
        return StoreDenied, "the store denies access; check the credentials and their permissions"
    if status in (301, 307):
        return _CODES["PermanentRedirect"]
    if status in (408, 409, 425, 429) or status >= 500:
        return StoreRetryable, f"{text}; try again"
    return StorePermanent, text


def _subject(kind: Kind, where: str) -> str:
    """An error of the whole store names its bucket, not the file at which it was met."""
    return "/".join(where.split("/")[:3]) if kind is StoreUnusable else where


def _sentence(kind: Kind, exc: Exception) -> str:
    reason = " ".join(str(exc).split())[:300].rstrip(".")
    if isinstance(exc, boto.NoCredentialsError):
        return "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if isinstance(exc, boto.SSLError) and kind is StoreUnusable:
        return f"the TLS connection failed ({reason}); check the endpoint, or set CHORALE_S3_CA_BUNDLE"
    if kind is StoreRetryable:
        return f"the store does not respond correctly ({reason}); check CHORALE_S3_ENDPOINT_URL"
    return reason
