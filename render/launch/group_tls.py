"""Mutual TLS 1.3 between the nodes of a group, derived from the one secret that they share.

Every node derives the same Ed25519 key and the same self-signed certificate from the secret, presents that
certificate, and trusts no other. A completed handshake therefore proves to both sides that the other one
holds the secret. What follows is encrypted and authenticated, and cannot be replayed: there are no session
tickets and no early data (RFC 8446). The server presents its certificate before the client has proved
anything, so a stranger can test guesses of the secret offline: it has to be random, not a password.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

_CONTEXT = b"chorale group, TLS key, version 1"
_NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "chorale-group")])
# Fixed, so that all nodes make the same bytes whatever their clocks say.
_FROM, _UNTIL = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)


class GroupTls:
    """The contexts of both ends, from a group's secret."""

    def __init__(self, secret: str, folder: Path | None = None) -> None:
        """`folder` is private and takes the key for a moment: `ssl` loads keys from files only."""
        derived = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_CONTEXT).derive(secret.encode())
        key = Ed25519PrivateKey.from_private_bytes(derived)
        certificate = _certificate(key)
        pem = certificate.public_bytes(Encoding.PEM)
        pem += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.server = _context(ssl.PROTOCOL_TLS_SERVER)
        # A ticket would let a client in without another look at its certificate.
        self.server.num_tickets = 0
        self.client = _context(ssl.PROTOCOL_TLS_CLIENT)
        # mkstemp gives mode 0600.
        descriptor, path = tempfile.mkstemp(dir=folder)
        try:
            os.write(descriptor, pem)
            for context in (self.server, self.client):
                context.load_cert_chain(path)
                context.load_verify_locations(cadata=certificate.public_bytes(Encoding.DER))
        finally:
            os.close(descriptor)
            os.unlink(path)


def _context(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Names mean nothing here: whoever has the key belongs to the group.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _certificate(key: Ed25519PrivateKey) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(_NAME)
        .issuer_name(_NAME)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        # An Ed25519 signature is deterministic.
        .sign(key, None)
    )
