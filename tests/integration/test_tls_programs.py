"""TLS with programs that are not Python: openssl's client and server, and curl."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from certificates import NAME, certificate, client_context, server_context, write_files
from conftest import PATIENCE_S, call_in_loop, eventually, installed
from pymuduo import Buffer, InetAddress, TcpClient, TcpConnection

PAYLOAD = b"".join(b"line %d\n" % i for i in range(100_000))


def echo(connection: TcpConnection, buffer: Buffer, when: object) -> None:
    connection.send(buffer)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write_files(tmp_path, certificate(NAME, "127.0.0.1"))
    return tmp_path


class Program:
    """A program that is fed through a pipe, and what it has printed."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.printed = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while data := os.read(self.process.stdout.fileno(), 65536):
            self.printed += data

    def say(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    running: list[Program] = []
    yield running
    for program in running:
        program.close()


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssls_client_is_served(serve, files, version):
    trusted = files / "trusted.pem"
    server = serve(1, ssl_context=server_context(), message_callback=echo)
    where = f"127.0.0.1:{server.port}"
    command = [installed("openssl"), "s_client", "-connect", where, "-servername", NAME, "-verify_hostname", NAME]
    command += ["-CAfile", str(trusted), "-verify_return_error", "-quiet", "-no_ign_eof", version]
    done = subprocess.run(command, input=PAYLOAD, capture_output=True, timeout=PATIENCE_S, check=False)
    # At the end of its input it leaves, with close-notify, whether or not everything has come back.
    assert done.returncode == 0, done.stderr
    assert PAYLOAD.startswith(done.stdout)
    eventually(lambda: server.server.connection_count == 0)


def test_openssls_client_gets_everything_before_the_goodbye(serve, files):
    def greet(connection: TcpConnection) -> None:
        if connection.connected:
            connection.send(PAYLOAD)
            connection.shutdown()

    server = serve(ssl_context=server_context(), connection_callback=greet)
    command = [installed("openssl"), "s_client", "-connect", f"127.0.0.1:{server.port}", "-quiet"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S, check=False)
    assert hashlib.sha256(done.stdout).hexdigest() == hashlib.sha256(PAYLOAD).hexdigest()


def test_a_client_that_wants_to_renegotiate_gets_no_second_handshake(serve, programs):
    server = serve(ssl_context=server_context(), message_callback=echo)
    where = f"127.0.0.1:{server.port}"
    program = Program([installed("openssl"), "s_client", "-connect", where, "-tls1_2"])
    programs.append(program)
    program.say(b"hello\n")
    eventually(lambda: b"hello" in bytes(program.printed).splitlines())
    program.say(b"R\n")
    eventually(lambda: b"RENEGOTIATING" in program.printed)
    eventually(lambda: b"no renegotiation" in program.printed or program.process.poll() is not None)
    eventually(lambda: server.server.connection_count == 0)
    with server.connect() as sock, client_context().wrap_socket(sock, server_hostname=NAME) as tls:
        tls.sendall(b"the server lives")
        assert tls.recv(100) == b"the server lives"


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssls_server_is_called(loop_thread, files, programs, version):
    key, chain, trusted = (files / name for name in ("key.pem", "cert.pem", "trusted.pem"))
    command = [installed("openssl"), "s_server", "-accept", "127.0.0.1:0", "-key", str(key), "-cert", str(chain)]
    command += ["-CAfile", str(trusted), "-Verify", "1", "-verify_return_error", "-rev", version]
    program = Program(command)
    programs.append(program)
    said = eventually(lambda: re.search(rb"ACCEPT 127.0.0.1:(\d+)\n", program.printed))
    assert said is not None
    port = int(said[1])
    received = bytearray()
    failures: list[Exception] = []
    context = client_context(certificate("alice@example.org"))
    address = InetAddress("127.0.0.1", port)
    talker = call_in_loop(loop_thread, lambda: TcpClient(loop_thread, address, "talker", ssl_context=context))
    talker.connect_failed_callback = lambda client, error: failures.append(error)
    talker.connection_callback = lambda c: c.connected and c.send(b"desserts\n")
    talker.message_callback = lambda c, buffer, when: received.extend(buffer.retrieve_all_as_bytes())
    talker.connect()
    eventually(lambda: bytes(received) == b"stressed\n" or failures)
    assert failures == []
    talker.close()


@pytest.mark.parametrize("form", [[], ["--http1.1", "--tlsv1.3"], ["--tls-max", "1.2"]])
def test_curl_gets_a_page(serve, files, form):
    trusted = files / "trusted.pem"
    page = hashlib.sha256(PAYLOAD).hexdigest().encode() * 20_000

    def answer(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        if buffer.find(b"\r\n\r\n") >= 0:
            buffer.retrieve_all()
            connection.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(page))
            connection.send(page)
            connection.shutdown()

    context = server_context()
    context.set_alpn_protocols(["http/1.1"])
    server = serve(1, ssl_context=context, message_callback=answer)
    command = [installed("curl"), "--silent", "--show-error", "--max-time", "15", "--cacert", str(trusted), *form]
    command += ["--noproxy", "*", f"https://127.0.0.1:{server.port}/"]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == page


def test_curl_refuses_a_certificate_of_another_name(serve, files):
    trusted = files / "trusted.pem"
    failures: list[Exception] = []
    server = serve(
        ssl_context=server_context(certificate("other.test")),
        handshake_failed_callback=lambda connection, error: failures.append(error),
        connection_callback=lambda connection: None,
    )
    command = [installed("curl"), "--silent", "--max-time", "15", "--cacert", str(trusted), "--noproxy", "*"]
    done = subprocess.run(
        [*command, f"https://127.0.0.1:{server.port}/"], capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 60  # "the remote server's certificate was deemed not OK"
    eventually(lambda: server.server.connection_count == 0)
    assert all(isinstance(failure, ssl.SSLError) for failure in failures)
