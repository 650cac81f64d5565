"""Clients that are not ours: nc, ncat, socat and curl talk to a server of each kind of life.

They are run as processes. ``.ci/install-clients`` installs them; where one is missing its tests are skipped, unless
``PYMUDUO_ALL_CLIENTS`` says that all of them must be there.
"""

from __future__ import annotations

import hashlib
import subprocess

import pytest

from conftest import PATIENCE_S, eventually, installed
from pymuduo import Buffer, TcpConnection


def run(command: list[str], data: bytes) -> bytes:
    """Run a client with *data* as its input and return what it printed."""
    done = subprocess.run(command, input=data, stdout=subprocess.PIPE, timeout=PATIENCE_S, check=False)
    return done.stdout


def echo(connection: TcpConnection, buffer: Buffer, when: object) -> None:
    connection.send(buffer)


PAYLOAD = b"".join(b"line %d\n" % i for i in range(200_000))


def commands(port: int) -> dict[str, list[str]]:
    where = ["127.0.0.1", str(port)]
    return {
        "nc": ["nc", "-N", *where],
        "ncat": ["ncat", *where],
        "socat": ["socat", "-t", "15", "-", f"TCP:127.0.0.1:{port}"],
        "curl": ["curl", "--silent", "--max-time", "15", f"telnet://127.0.0.1:{port}"],
    }


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("name", ["nc", "ncat", "socat"])
def test_a_client_that_half_closes_gets_the_whole_echo(serve, name, threads):
    installed(name)
    server = serve(threads, message_callback=echo)
    answer = run(commands(server.port)[name], PAYLOAD)
    assert hashlib.sha256(answer).hexdigest() == hashlib.sha256(PAYLOAD).hexdigest()
    eventually(lambda: server.server.connection_count == 0)


@pytest.mark.parametrize("name", ["nc", "ncat", "socat", "curl"])
def test_a_server_that_half_closes_delivers_everything_first(serve, name):
    installed(name)

    def greet(connection: TcpConnection) -> None:
        if connection.connected:
            connection.send(PAYLOAD)
            connection.shutdown()

    server = serve(1, connection_callback=greet)
    assert run(commands(server.port)[name], b"") == PAYLOAD
    eventually(lambda: server.server.connection_count == 0)


def test_curl_telnet_talks_line_by_line(serve):
    installed("curl")

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        while (end := buffer.find_eol()) >= 0:
            line = buffer.retrieve_as_bytes(end + 1)
            connection.send(line.upper())
            if line == b"bye\n":
                connection.shutdown()

    server = serve(0, message_callback=on_message)
    assert run(commands(server.port)["curl"], b"hello\nworld\nbye\n") == b"HELLO\nWORLD\nBYE\n"


def test_a_client_killed_in_mid_stream_leaves_nothing(serve):
    installed("nc")

    def generate(connection: TcpConnection) -> None:
        if connection.connected:
            connection.send(bytes(65536))

    server = serve(1, connection_callback=generate, write_complete_callback=generate)
    process = subprocess.Popen(["nc", "127.0.0.1", str(server.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.read(1 << 20)
    process.kill()
    process.wait(PATIENCE_S)
    process.stdout.close()
    process.stdin.close()
    eventually(lambda: server.server.connection_count == 0)
