"""Certificates of a test: an authority, and what it issues for signing documents."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Issued:
    """Files of a certificate: the chain without its root, the key, and the root that readers trust."""

    certificate: Path
    key: Path
    root: str
    """PEM."""

    @property
    def environment(self) -> dict[str, str]:
        return {"CHORALE_C2PA_CERTIFICATE": str(self.certificate), "CHORALE_C2PA_KEY": str(self.key)}


def issue(
    folder: Path,
    key: Key | None = None,
    *,
    name: str = "signer",
    begins: timedelta = -DAY,
    ends: timedelta = 30 * DAY,
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.EMAIL_PROTECTION,
) -> Issued:
    """A certificate for signing, issued by an intermediate of a new root."""
    now = datetime.now(UTC)
    root_key, middle_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    key = key or ec.generate_private_key(ec.SECP256R1())
    root = _certificate("Test Root", root_key, "Test Root", root_key, (now - 2 * DAY, now + 60 * DAY))
    middle = _certificate(
        "Test Authority", middle_key, "Test Root", root_key, (now - 2 * DAY, now + 60 * DAY)
    )
    leaf = _certificate(
        "Test Studio", key, "Test Authority", middle_key, (now + begins, now + ends), usage=usage
    )
    folder.mkdir(parents=True, exist_ok=True)
    found = Issued(folder / f"{name}.pem", folder / f"{name}.key", _pem(root).decode())
    found.certificate.write_bytes(_pem(leaf) + _pem(middle))
    form = serialization.PrivateFormat.PKCS8
    found.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return found


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _name(common: str) -> x509.Name:
    parts = ((NameOID.COUNTRY_NAME, "DE"), (NameOID.ORGANIZATION_NAME, "Test"), (NameOID.COMMON_NAME, common))
    return x509.Name([x509.NameAttribute(each, value) for each, value in parts])


def _certificate(
    subject: str,
    key: Key,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    valid: tuple[datetime, datetime],
    usage: x509.ObjectIdentifier | None = None,
) -> x509.Certificate:
    authority = usage is None
    uses = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
         "decipher_only"),
        False,
    )  # fmt: skip
    made = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, **uses
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    if usage is not None:
        made = made.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return made.sign(issuer_key, hashes.SHA256())
