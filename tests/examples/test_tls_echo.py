"""The echo server that speaks TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from certificates import client_context, write_files
from conftest import installed, receive_exactly
from programs import running


@pytest.mark.parametrize("threads", ["0", "2"])
def test_echoes_in_tls_and_logs_what_was_agreed_on(tmp_path: Path, threads: str) -> None:
    write_files(tmp_path)
    files = ["--certificate", str(tmp_path / "cert.pem"), "--key", str(tmp_path / "key.pem")]
    with running("tls_echo.py", "--threads", threads, *files) as server:
        with client_context().wrap_socket(server.connect(), server_hostname="localhost") as tls:
            tls.sendall(bytes(100_000))
            assert receive_exactly(tls, 100_000) == bytes(100_000)
            server.wait_for_log("is up: TLSv1.3 TLS_")
            tls.unwrap()
        server.wait_for_log("is down")
        with server.connect() as peer:
            peer.sendall(b"no hello at all, but long enough to be told from one")
            server.wait_for_log(r"failed: \[SSL")


def test_makes_a_certificate_if_there_is_none(tmp_path: Path) -> None:
    installed("openssl")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    with running("tls_echo.py", "--certificate", str(cert), "--key", str(key)) as server:
        context = ssl.create_default_context(cafile=str(cert))
        with context.wrap_socket(server.connect(), server_hostname="localhost") as tls:
            tls.sendall(b"hello")
            assert receive_exactly(tls, 5) == b"hello"
