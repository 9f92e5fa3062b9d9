"""The certificate and the private key that files are signed with (C2PA), read and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from infra.errors import BadSetting
from infra.settings import Settings, check_unused

_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_RSA = ("ps256", "ps384", "ps512")
ALGORITHMS = (*_CURVES.values(), *_RSA, "ed25519")
"""Those of C2PA 2.x."""
_LEAST_RSA_BITS = 2048


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A certificate chain whose first certificate belongs to the key. Valid when it was read."""

    chain: tuple[x509.Certificate, ...]
    """The signer's own first, then those that issued it."""
    key: bytes = field(repr=False)
    """PEM, PKCS #8."""
    algorithm: str
    """One of `ALGORITHMS`."""
    timestamp_url: str = ""
    """Of an RFC 3161 time-stamp authority; empty for signatures without a time stamp."""
    path: str
    """The certificates' file, for errors."""

    @property
    def chain_pem(self) -> bytes:
        """The chain as one PEM file."""
        return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in self.chain)

    @property
    def subject(self) -> str:
        """Whose certificate it is."""
        return self.chain[0].subject.rfc4514_string()

    @property
    def until(self) -> datetime:
        """When the first certificate of the chain expires."""
        return min(each.not_valid_after_utc for each in self.chain)

    def check_dates(self) -> None:
        """Raise `BadSetting` unless all certificates are valid today."""
        today = datetime.now(UTC)
        for each in self.chain:
            name = each.subject.rfc4514_string()
            if today > each.not_valid_after_utc:
                day = each.not_valid_after_utc.date()
                raise BadSetting("c2pa_certificate", self.path, f"has expired on {day} ({name}); renew it")
            if today < each.not_valid_before_utc:
                day = each.not_valid_before_utc.date()
                problem = f"is not valid before {day} ({name}); check the clock, or wait"
                raise BadSetting("c2pa_certificate", self.path, problem)


def read_credentials(settings: Settings) -> Credentials | None:
    """The certificate and key of the settings; None where there is no certificate.

    Raises `BadSetting` for files that cannot be read, a key of another certificate, an expired certificate,
    and an algorithm that is not the key's.
    """
    path = settings.c2pa_certificate
    if not path:
        fix = "needs c2pa_certificate, a PEM file with the certificate chain; set both or none"
        check_unused(settings, ("c2pa_key", "c2pa_algorithm", "c2pa_timestamp_url"), fix)
        return None
    if not settings.c2pa_key:
        raise BadSetting("c2pa_certificate", path, "needs c2pa_key, a PEM file with its private key")
    url = settings.c2pa_timestamp_url
    if url and not url.startswith(("http://", "https://")):
        raise BadSetting("c2pa_timestamp_url", url, "is no URL; use e.g. http://timestamp.digicert.com")
    chain = _read_chain(path)
    key = _read_key(settings.c2pa_key)
    if _public(key) != chain[0].public_key().public_bytes(*_FORM):
        first = chain[0].subject.rfc4514_string()
        problem = f"is not the key of the first certificate of {path} ({first}); give its own"
        raise BadSetting("c2pa_key", settings.c2pa_key, problem)
    found = Credentials(
        chain=chain,
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        algorithm=_algorithm(key, settings),
        timestamp_url=url,
        path=path,
    )
    found.check_dates()
    _check_chain(found)
    return found


_FORM = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _public(key: PrivateKeyTypes) -> bytes:
    return key.public_key().public_bytes(*_FORM)


def _bytes(name: str, path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as exc:
        raise BadSetting(name, path, f"cannot be read ({exc.strerror}); check the path") from exc


def _read_chain(path: str) -> tuple[x509.Certificate, ...]:
    try:
        return tuple(x509.load_pem_x509_certificates(_bytes("c2pa_certificate", path)))
    except ValueError as exc:
        problem = "holds no PEM certificates; give the chain, the signer's own certificate first"
        raise BadSetting("c2pa_certificate", path, problem) from exc


def _read_key(path: str) -> PrivateKeyTypes:
    data = _bytes("c2pa_key", path)
    try:
        return serialization.load_pem_private_key(data, password=None)
    except TypeError as exc:
        fix = "is encrypted; decrypt it (openssl pkey -in FILE -out NEW) and guard the new file"
        raise BadSetting("c2pa_key", path, fix) from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise BadSetting("c2pa_key", path, "holds no PEM private key; give one in PKCS #8") from exc


def _algorithm(key: PrivateKeyTypes, settings: Settings) -> str:
    """The one of the settings, or else the first that the key can be used with. Raises `BadSetting`."""
    able: tuple[str, ...] = ()
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        able = (_CURVES[key.curve.name],)
    elif isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _LEAST_RSA_BITS:
        able = _RSA
    elif isinstance(key, ed25519.Ed25519PrivateKey):
        able = ("ed25519",)
    if not able:
        kinds = f"P-256, P-384, P-521, Ed25519, or RSA of {_LEAST_RSA_BITS} bits or more"
        raise BadSetting("c2pa_key", settings.c2pa_key, f"is of a kind that C2PA does not allow; use {kinds}")
    wanted = settings.c2pa_algorithm.lower()
    if not wanted:
        return able[0]
    if wanted not in ALGORITHMS:
        raise BadSetting("c2pa_algorithm", wanted, f"is unknown; use one of {', '.join(ALGORITHMS)}")
    if wanted not in able:
        raise BadSetting("c2pa_algorithm", wanted, f"does not fit the key; use {' or '.join(able)}")
    return wanted


def _check_chain(found: Credentials) -> None:
    """Raise `BadSetting` where a certificate is not issued by the next one of the file."""
    for each, issuer in zip(found.chain, found.chain[1:], strict=False):
        try:
            each.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature) as exc:
            name = each.subject.rfc4514_string()
            fix = f"is in the wrong order: {name} is not issued by the next one; put the signer's own first"
            raise BadSetting("c2pa_certificate", found.path, fix) from exc
