"""Certificates for the tests, made when they are first asked for: of an authority that some trust, and of another."""

from __future__ import annotations

import datetime
import functools
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conftest import imported

if TYPE_CHECKING:
    import trustme

NAME = "localhost"
TRUSTED = "the one that is trusted"
IGNORE_CUT = getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)  # which CPython before 3.11.3 sets with OpenSSL 3
CUT = ssl.SSLEOFError if sys.version_info >= (3, 11, 3) else ssl.SSLError  # what that is to its client
PAST = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)


@functools.cache
def authority(name: str) -> trustme.CA:
    """Return the authority of that name."""
    maker = imported("trustme")  # whose cryptography has no wheels for some Pythons
    ca: trustme.CA = maker.CA(organization_name=name, key_type=maker.KeyType.ECDSA)
    return ca


@functools.cache
def certificate(*names: str, issuer: str = TRUSTED, is_expired: bool = False) -> trustme.LeafCert:
    """Return a certificate for *names*, with its key."""
    life: dict[str, Any] = {"not_before": PAST, "not_after": PAST + datetime.timedelta(days=1)} if is_expired else {}
    kind = imported("trustme").KeyType.ECDSA
    return authority(issuer).issue_cert(*names, key_type=kind, **life)


def server_context(cert: trustme.LeafCert | None = None, *, asks_client: bool = False) -> ssl.SSLContext:
    """Return a new context for a server: of NAME, unless another certificate is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (cert or certificate(NAME, "127.0.0.1")).configure_cert(context)
    if asks_client:
        context.verify_mode = ssl.CERT_REQUIRED
        authority(TRUSTED).configure_trust(context)
    return context


def client_context(cert: trustme.LeafCert | None = None) -> ssl.SSLContext:
    """Return a new context for a client that trusts the authority, and has a certificate if one is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.options &= ~IGNORE_CUT
    authority(TRUSTED).configure_trust(context)
    if cert is not None:
        cert.configure_cert(context)
    return context


def write_files(folder: Path, cert: trustme.LeafCert | None = None) -> None:
    """Write ``key.pem``, ``cert.pem`` (which is also one to trust, as one that signs itself is), ``trusted.pem``."""
    cert = cert or certificate(NAME)
    trusted = authority(TRUSTED).cert_pem.bytes()
    cert.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems) + trusted)
    (folder / "trusted.pem").write_bytes(trusted)
