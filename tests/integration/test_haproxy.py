"""A load balancer that is not ours: haproxy before a server says who the client is, in every form it knows.

haproxy is started by each test with a configuration of its own, inherits a socket that listens already, and is ended
by it. ``.ci/install-clients`` installs it; where it is missing the tests are skipped, unless ``PYMUDUO_ALL_CLIENTS``
says that it must be there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import PATIENCE_S, ServerThread, eventually, installed, receive_all, receive_exactly
from pymuduo import Buffer, InetAddress, TcpConnection
from pymuduo.proxy_protocol import ProxyHeader, ProxyProtocol, ProxyTlv

TRUSTED = ProxyProtocol(["127.0.0.1", "::1"])
CONFIG = """
global
    maxconn 100
    nbthread 1
defaults
    mode tcp
    timeout connect 15s
    timeout client 15s
    timeout server 15s
    timeout check 15s
listen before
    bind fd@{fd} {bind}
    unique-id-format client-port-%cp
    server behind 127.0.0.1:{port} {server}
"""


class Haproxy:
    """haproxy before a server of ours; its port is of the kernel's choice."""

    def __init__(self, folder: Path, server_port: int, server: str, bind: str, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, 0), family=family) as listener:
            self.address = listener.getsockname()
            config = folder / "haproxy.cfg"
            config.write_text(CONFIG.format(fd=listener.fileno(), bind=bind, port=server_port, server=server))
            self.log = folder / "haproxy.log"
            with self.log.open("w") as log:
                self.process = subprocess.Popen(
                    [installed("haproxy", "/usr/sbin", "/sbin"), "-db", "-f", str(config)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[listener.fileno()],
                )

    def connect(self) -> socket.socket:
        """Return a connected client; before haproxy has started it waits in the backlog."""
        assert self.process.poll() is None, self.log.read_text()
        return socket.create_connection(self.address[:2], timeout=PATIENCE_S)

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.process.wait()


class Visitors:
    """What a server hears of its connections; it echoes."""

    def __init__(self) -> None:
        self.clients: list[TcpConnection] = []
        self.checks: list[TcpConnection] = []
        self.failed: list[Any] = []

    def settings(self) -> dict[str, Any]:
        return {
            "proxy_protocol": TRUSTED,
            "connection_callback": self.on_connection,
            "message_callback": self.on_message,
            "handshake_failed_callback": lambda connection, error: self.failed.append(error),
        }

    def on_connection(self, connection: TcpConnection) -> None:
        if connection.connected:
            (self.checks if connection.proxy_header.is_local else self.clients).append(connection)

    def on_message(self, connection: TcpConnection, buffer: Buffer, when: object) -> None:
        connection.send(buffer)


@pytest.fixture
def start_haproxy(tmp_path: Path) -> Iterator[Callable[..., Haproxy]]:
    """Return a function that starts haproxy before a server."""
    installed("haproxy", "/usr/sbin", "/sbin")
    with contextlib.ExitStack() as stack:

        def start(behind: ServerThread, server: str, bind: str = "", host: str = "127.0.0.1") -> Haproxy:
            haproxy = Haproxy(tmp_path, behind.port, server, bind, host)
            stack.callback(haproxy.end)
            return haproxy

        yield start


def talk(haproxy: Haproxy, visitors: Visitors) -> tuple[TcpConnection, ProxyHeader, InetAddress, InetAddress]:
    """Be a client for a while; what the server has seen of it, and its real ends."""
    payload = os.urandom(300_000)
    with haproxy.connect() as client:
        client.sendall(payload[:1])
        assert receive_exactly(client, 1) == payload[:1]
        ours, theirs = (InetAddress(*name[:2]) for name in (client.getsockname(), client.getpeername()))
        seen = visitors.clients[-1]
        client.sendall(payload[1:])
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == payload[1:]
    return seen, seen.proxy_header, ours, theirs


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize(
    ("server", "version"),
    [("send-proxy", 1), ("send-proxy-v2", 2), ("send-proxy-v2 proxy-v2-options crc32c,unique-id", 2)],
    ids=["line", "binary", "binary with fields"],
)
def test_the_server_sees_the_client_as_if_nobody_stood_between(serve, start_haproxy, server, version, host, threads):
    visitors = Visitors()
    haproxy = start_haproxy(serve(threads, **visitors.settings()), server, host=host)
    for _ in range(3):
        seen, header, ours, theirs = talk(haproxy, visitors)
        assert (seen.peer_address, seen.local_address) == (ours, theirs)
        assert (header.version, header.source, header.destination) == (version, ours, theirs)
        if "crc32c" in server:
            assert header.unique_id == f"client-port-{ours.port}".encode()
            assert header.tlv(ProxyTlv.CRC32C) is not None
    assert visitors.failed == []


def test_health_checks_come_up_as_the_load_balancers_own(serve, start_haproxy):
    visitors = Visitors()
    start_haproxy(serve(0, **visitors.settings()), "send-proxy-v2 check inter 50ms")
    eventually(lambda: len(visitors.checks) >= 2)
    check = visitors.checks[0]
    assert check.peer_address.ip == "127.0.0.1"
    assert check.proxy_header == ProxyHeader(2, is_local=True)
    assert visitors.clients == []


def test_health_checks_do_not_disturb_clients(serve, start_haproxy):
    visitors = Visitors()
    haproxy = start_haproxy(serve(1, **visitors.settings()), "send-proxy-v2 check inter 10ms")
    for _ in range(20):
        seen, _, ours, _ = talk(haproxy, visitors)
        assert seen.peer_address == ours


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a server's and a client's key and certificate (``….pem``), each signed by itself."""
    folder = tmp_path_factory.mktemp("certificates")
    for name, common_name in (("server", "localhost"), ("client", "Zoë")):
        make = [installed("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        make += ["-utf8", "-subj", f"/CN={common_name}", "-days", "2", "-addext", "subjectAltName=DNS:localhost"]
        make += ["-keyout", f"{name}.key", "-out", f"{name}.crt"]
        subprocess.run(make, cwd=folder, check=True, capture_output=True, timeout=PATIENCE_S)
        pem = (folder / f"{name}.key").read_bytes() + (folder / f"{name}.crt").read_bytes()
        (folder / f"{name}.pem").write_bytes(pem)
    return folder


@pytest.mark.parametrize("has_certificate", [True, False])
def test_the_server_is_told_of_the_tls_that_ended_before_it(serve, start_haproxy, certificates, has_certificate):
    visitors = Visitors()
    haproxy = start_haproxy(
        serve(0, **visitors.settings()),
        "send-proxy-v2-ssl-cn proxy-v2-options authority,crc32c",
        bind=f"ssl crt {certificates}/server.pem ca-file {certificates}/client.crt verify optional alpn muduo/1",
    )
    context = ssl.create_default_context(cafile=str(certificates / "server.crt"))
    context.set_alpn_protocols(["muduo/1"])
    if has_certificate:
        context.load_cert_chain(certificates / "client.pem")
    with haproxy.connect() as plain, context.wrap_socket(plain, server_hostname="localhost") as client:
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
        header = visitors.clients[0].proxy_header
        assert header.source == InetAddress(*client.getsockname())
        assert header.authority == "localhost"
        assert header.alpn == b"muduo/1"
        told = header.ssl
        assert told.is_tls
        assert told.version == client.version()
        assert told.client_is_verified is has_certificate
        assert told.common_name == ("Zoë" if has_certificate else None)


@pytest.mark.parametrize("server", ["send-proxy", "send-proxy-v2"])
def test_tls_may_end_at_the_server_behind_the_header(serve, start_haproxy, certificates, server):
    visitors = Visitors()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(certificates / "server.pem")
    haproxy = start_haproxy(serve(1, ssl_context=server_context, **visitors.settings()), server)
    context = ssl.create_default_context(cafile=str(certificates / "server.crt"))
    with haproxy.connect() as plain, context.wrap_socket(plain, server_hostname="localhost") as client:
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
        assert visitors.clients[0].peer_address == InetAddress(*client.getsockname())
    assert visitors.failed == []
