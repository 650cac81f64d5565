"""Programs that are not ours on Unix sockets: clients of our servers, servers of our clients, and datagrams.

What they send and get back by path is tested with the rest of Unix sockets (``test_unix_address.py``); here is what
else they do. ``.ci/install-clients`` installs them; where one is missing its tests are skipped, unless
``PYMUDUO_ALL_CLIENTS`` says that all of them must be there.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import PATIENCE_S, ServerThread, call_in_loop, eventually, installed
from pymuduo import Buffer, EventLoop, TcpClient, TcpConnection, UdpSocket, UnixAddress
from pymuduo.socket_file import is_dead

PAYLOAD = b"".join(b"line %d\n" % i for i in range(50_000))


def run(command: list[str], data: bytes) -> bytes:
    """Run a program with *data* as its input and return what it printed; skip the test if it is not installed."""
    installed(command[0])
    done = subprocess.run(command, input=data, stdout=subprocess.PIPE, timeout=PATIENCE_S, check=False)
    return done.stdout


@contextlib.contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for the length of a block; skip the test if it is not installed."""
    installed(command[0])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()
            process.wait(PATIENCE_S)


def echo(connection: TcpConnection, buffer: Buffer, when: object) -> None:
    connection.send(buffer)


def answer_http(connection: TcpConnection, buffer: Buffer, when: object) -> None:
    if buffer.find(b"\r\n\r\n") >= 0:
        buffer.retrieve_all()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(PAYLOAD))
        connection.send(PAYLOAD)
        connection.shutdown()


@pytest.fixture
def address(tmp_path: Path) -> UnixAddress:
    return UnixAddress(tmp_path / "socket")


@pytest.fixture
def abstract(tmp_path: Path) -> UnixAddress:
    return UnixAddress.abstract(str(tmp_path))


# --- clients that are not ours ---


def test_netcat_gets_the_whole_echo_from_an_abstract_name(
    serve: Callable[..., ServerThread], abstract: UnixAddress
) -> None:
    server = serve(1, address=abstract, message_callback=echo)
    assert run(["nc", "-N", "-U", f"@{abstract.name.decode()}"], PAYLOAD) == PAYLOAD
    eventually(lambda: server.server.connection_count == 0)


def test_curl_gets_a_page_from_an_abstract_name(serve: Callable[..., ServerThread], abstract: UnixAddress) -> None:
    serve(1, address=abstract, message_callback=answer_http)
    name = abstract.name.decode()
    assert run(["curl", "--silent", "--max-time", "15", "--abstract-unix-socket", name, "http://x/"], b"") == PAYLOAD


@pytest.mark.parametrize("name", ["nc", "ncat", "socat"])
def test_a_server_that_half_closes_delivers_everything_first(
    serve: Callable[..., ServerThread], address: UnixAddress, name: str
) -> None:
    def greet(connection: TcpConnection) -> None:
        if connection.connected:
            connection.send(PAYLOAD)
            connection.shutdown()

    command = {
        "nc": ["nc", "-N", "-U", address.path],
        "ncat": ["ncat", "-U", address.path],
        "socat": ["socat", "-t", "15", "-", f"UNIX-CONNECT:{address.path}"],
    }[name]
    server = serve(1, address=address, connection_callback=greet)
    assert run(command, b"") == PAYLOAD
    eventually(lambda: server.server.connection_count == 0)


def test_the_process_of_a_client_is_known(serve: Callable[..., ServerThread], address: UnixAddress) -> None:
    seen: list[int] = []

    def on_connection(connection: TcpConnection) -> None:
        if connection.connected:
            seen.append(connection.peer_credentials().pid)

    serve(0, address=address, connection_callback=on_connection)
    with running("nc", "-U", address.path) as client:
        eventually(lambda: seen)
        assert seen == [client.pid]


def test_a_client_killed_in_mid_stream_leaves_nothing(serve: Callable[..., ServerThread], address: UnixAddress) -> None:
    def generate(connection: TcpConnection) -> None:
        if connection.connected:
            connection.send(bytes(65536))

    server = serve(1, address=address, connection_callback=generate, write_complete_callback=generate)
    with running("nc", "-U", address.path) as client:
        assert client.stdout is not None
        assert len(client.stdout.read(1 << 20)) == 1 << 20
    eventually(lambda: server.server.connection_count == 0)


# --- servers that are not ours ---


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_our_client_gets_the_whole_echo_from_socat(
    loop_thread: EventLoop, address: UnixAddress, abstract: UnixAddress, kind: str
) -> None:
    target, option = {
        "path": (address, f"UNIX-LISTEN:{address.path}"),
        "abstract": (abstract, f"ABSTRACT-LISTEN:{abstract.name.decode()}"),
    }[kind]
    received = bytearray()
    ended: list[TcpConnection] = []

    def on_connection(connection: TcpConnection) -> None:
        if connection.connected:
            connection.send(PAYLOAD)
            connection.shutdown()
        else:
            ended.append(connection)

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        received.extend(buffer.retrieve_all_as_bytes())

    # It can't tell when it listens: that is what trying again is for.
    client = TcpClient(loop_thread, target, "caller", retry=True, retry_delay_s=0.01)
    client.connection_callback = on_connection
    client.message_callback = on_message
    with running("socat", "-t", "15", option, "EXEC:cat"):
        client.connect()
        eventually(lambda: ended)
        client.close()
        call_in_loop(loop_thread, lambda: None)
    assert received == PAYLOAD


def test_the_file_of_a_killed_foreign_server_is_taken_over(
    serve: Callable[..., ServerThread], address: UnixAddress
) -> None:
    with running("nc", "-l", "-k", "-U", address.path):
        eventually(lambda: Path(address.path).exists() and not is_dead(address.path))
    assert is_dead(address.path)
    serve(0, address=address, message_callback=echo)
    assert run(["nc", "-N", "-U", address.path], b"hello\n") == b"hello\n"


# --- datagrams ---


def test_socat_gets_its_datagrams_back(loop_thread: EventLoop, address: UnixAddress, tmp_path: Path) -> None:
    senders: list[object] = []

    def answer(udp: UdpSocket, data: bytes, sender: UnixAddress, when: object) -> None:
        senders.append(sender)
        udp.send_to(data.upper(), sender)

    def make() -> UdpSocket:
        made = UdpSocket(loop_thread, address)
        made.message_callback = answer
        made.start()
        return made

    udp = call_in_loop(loop_thread, make)
    own = str(tmp_path / "socat")
    with running("socat", "-", f"UNIX-SENDTO:{address.path},bind={own}") as client:
        assert client.stdin is not None
        assert client.stdout is not None
        for word in (b"hello\n", b"world\n"):
            client.stdin.write(word)
            client.stdin.flush()
            assert client.stdout.readline() == word.upper()
    assert senders == [UnixAddress(own)] * 2
    call_in_loop(loop_thread, udp.close)
    assert not Path(address.path).exists()
