"""Sockets inherited from systemd or a parent process: real children, and the variables as systemd sets them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import PATIENCE_S, eventually, receive_all, receive_exactly
from pymuduo import Acceptor, EventLoop, InetAddress, Socket
from pymuduo.inherited_sockets import handover_environment, inherited_sockets
from pymuduo.unix_address import UnixAddress

VARIABLES = (
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "PYMUDUO_LISTEN_FDS",
    "PYMUDUO_LISTEN_FDNAMES",
)

# What a child tells of the sockets it has inherited.
TELL = """
import json, os, sys
from pymuduo.inherited_sockets import inherited_sockets

def tell():
    try:
        return [
            [name, str(sock.local_address), sock.fd, os.get_blocking(sock.fd), os.get_inheritable(sock.fd)]
            for name, sock in kept(inherited_sockets())
        ]
    except ValueError as e:
        return str(e)

keep = []
def kept(found):
    keep.append(found)
    return found

first = tell()
print(json.dumps({
    "first": first,
    "second": tell(),
    "left": [name for name in os.environ if name.startswith(("LISTEN_", "PYMUDUO_LISTEN"))],
}))
"""

SERVE = """
import sys
from pymuduo import EventLoop, TcpServer
from pymuduo.inherited_sockets import inherited_sockets

def answer(connection, buffer, when):
    connection.send(sys.argv[1].encode() + b" " + buffer.retrieve_all_as_bytes())

with EventLoop() as loop:
    for name, sock in inherited_sockets():
        server = TcpServer(loop, None, name, listening=sock)
        server.message_callback = answer
        server.connection_callback = lambda c: None if c.connected or c.error else loop.quit()
        server.start()
    print("ready", flush=True)
    loop.run()
"""


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test inherit what this process may have been given."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def listening() -> Iterator[Socket]:
    """Return a socket that listens on a free port."""
    with contextlib.closing(Socket.create(socket.AF_INET)) as made:
        made.bind(InetAddress.loopback(0))
        made.listen()
        yield made


def run(command: list[str], **settings: Any) -> dict[str, Any]:
    """Run a child to its end and return what it tells as JSON."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **settings)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    told["log"] = done.stderr
    return told


def hand_over(sockets: list[Any], code: str = TELL, **more: str) -> dict[str, Any]:
    environment, descriptors = handover_environment(sockets)
    return run([sys.executable, "-c", code], env={**os.environ, **environment, **more}, pass_fds=descriptors)


def as_systemd(count: int, names: str | None, sockets: list[Socket], process: str = "$$") -> dict[str, Any]:
    """Start a child as systemd does: descriptors from 3 on, and its own process id in the environment."""
    variables = f"LISTEN_PID={process} LISTEN_FDS={count}" + ("" if names is None else f" LISTEN_FDNAMES='{names}'")
    moves = " ".join(f"{3 + i}<&{sock.fd}" for i, sock in enumerate(sockets))
    # Moved out of the way first: a descriptor may be 3 itself.
    high = [os.dup2(sock.fd, 100 + i, inheritable=False) for i, sock in enumerate(sockets)]
    moves = " ".join(f"{3 + i}<&{fd}" for i, fd in enumerate(high))
    close = " ".join(f"{fd}<&-" for fd in high)
    # bash: other shells know descriptors of one digit only.
    script = f'exec {moves}\nexec {close}\nexport {variables}\nexec "$@"'
    try:
        return run(["bash", "-c", script, "bash", sys.executable, "-c", TELL], pass_fds=high)
    finally:
        for fd in high:
            os.close(fd)


# --- nothing to inherit ---


def test_without_variables_there_is_nothing() -> None:
    assert inherited_sockets() == []


def test_the_variables_of_another_process_are_not_taken_but_removed(
    listening: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert inherited_sockets() == []
    assert not any(name in os.environ for name in VARIABLES)


def test_a_descriptor_that_is_not_the_socket_that_was_meant_is_not_taken(
    listening: Socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(Socket.create(socket.AF_INET)) as other:
        environment, _ = handover_environment([listening])
        fd, number = environment["PYMUDUO_LISTEN_FDS"].split(":")
        for words in (f"{other.fd}:{number}", f"900:{number}", f"0:{number}"):
            monkeypatch.setenv("PYMUDUO_LISTEN_FDS", words)
            assert inherited_sockets() == []
            assert "is not the socket that was handed over" in caplog.text
            caplog.clear()
        assert int(fd) == listening.fd


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"LISTEN_PID": "x", "LISTEN_FDS": "1"}, "must be numbers"),
        ({"LISTEN_PID": "{pid}", "LISTEN_FDS": "one"}, "must be numbers"),
        ({"LISTEN_PID": "{pid}", "LISTEN_FDS": "-1"}, "number of descriptors"),
        ({"LISTEN_PID": "{pid}", "LISTEN_FDS": "9999999999"}, "number of descriptors"),
        ({"LISTEN_PID": "{pid}", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "one"}, "2 descriptors with 1 names"),
        ({"PYMUDUO_LISTEN_FDS": "7"}, "with their sockets' numbers"),
        ({"PYMUDUO_LISTEN_FDS": "7:"}, "with their sockets' numbers"),
        ({"PYMUDUO_LISTEN_FDS": "-1:5"}, "with their sockets' numbers"),
    ],
)
def test_variables_that_make_no_sense_are_refused_and_removed(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(pid=os.getpid()))
    with pytest.raises(ValueError, match=message):
        inherited_sockets()
    assert not any(name in os.environ for name in VARIABLES)
    assert inherited_sockets() == []


# --- from a parent of one's own ---


def test_a_child_gets_the_sockets_by_name_once(listening: Socket, tmp_path: Path) -> None:
    with contextlib.closing(Socket.create(socket.AF_UNIX)) as unix:
        address = UnixAddress(tmp_path / "s")
        unix.bind(address)
        unix.listen()
        told = hand_over([("http", listening), ("admin", unix)])
        assert told["first"] == [
            ["http", str(listening.local_address), listening.fd, False, False],
            ["admin", str(address), unix.fd, False, False],
        ]
        assert told["second"] == []
        assert told["left"] == []


def test_sockets_without_names_are_unknown(listening: Socket) -> None:
    assert [entry[0] for entry in hand_over([listening])["first"]] == ["unknown"]


def test_our_variables_come_before_systemds(listening: Socket) -> None:
    told = hand_over([("ours", listening)], LISTEN_PID="1", LISTEN_FDS="1", LISTEN_FDNAMES="theirs")
    assert [entry[0] for entry in told["first"]] == ["ours"]
    assert told["left"] == []


def test_no_sockets_are_none() -> None:
    assert hand_over([])["first"] == []


def test_a_child_that_does_not_get_the_descriptors_gets_nothing(listening: Socket) -> None:
    environment, _ = handover_environment([listening])
    told = run([sys.executable, "-c", TELL], env={**os.environ, **environment})
    assert told["first"] == []
    assert "is not the socket that was handed over" in told["log"]


def test_what_does_not_listen_is_refused() -> None:
    for kind, bound in ((socket.SOCK_STREAM, True), (socket.SOCK_DGRAM, False)):
        with socket.socket(socket.AF_INET, kind) as sock:
            if bound:
                sock.bind(("127.0.0.1", 0))
            with contextlib.closing(Socket(os.dup(sock.fileno()))) as ours:
                assert "neither a listening stream socket nor a bound datagram socket" in hand_over([ours])["first"]


def test_bound_datagram_sockets_are_handed_over_too() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with contextlib.closing(Socket(os.dup(sock.fileno()))) as ours:
            told = hand_over([("dns", ours)])
            assert [entry[:2] for entry in told["first"]] == [["dns", str(ours.local_address)]]


@pytest.mark.parametrize("name", ["a:b", "a\nb", ""])
def test_a_name_that_the_variable_cannot_hold_is_refused(listening: Socket, name: str) -> None:
    with pytest.raises(ValueError, match="printable and without a colon"):
        handover_environment([(name, listening)])


def test_a_closed_socket_cannot_be_handed_over(listening: Socket) -> None:
    listening.close()
    with pytest.raises(OSError):
        handover_environment([listening])


def start_server(listening: Socket, name: str) -> subprocess.Popen[bytes]:
    environment, descriptors = handover_environment([listening])
    child = subprocess.Popen(
        [sys.executable, "-c", SERVE, name],
        env={**os.environ, **environment},
        pass_fds=descriptors,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child


def test_a_child_serves_and_who_waits_in_the_queue_is_served_by_the_next(listening: Socket) -> None:
    where = listening.local_address.sockaddr
    for name in ("first", "second"):
        # It connects before there is anybody to accept it.
        with socket.create_connection(where, timeout=PATIENCE_S) as client, start_server(listening, name) as child:
            client.sendall(b"hello")
            answer = f"{name} hello".encode()
            assert receive_exactly(client, len(answer)) == answer
            client.close()  # and the child ends
            assert child.wait(PATIENCE_S) == 0


def test_parent_and_child_accept_from_the_same_queue(listening: Socket, loop: EventLoop) -> None:
    where = listening.local_address.sockaddr
    with start_server(listening, "child") as child:
        acceptor = Acceptor(loop, None, listening=listening)  # the parent does not listen: the child alone accepts
        acceptor.close()
        with socket.create_connection(where, timeout=PATIENCE_S) as client:
            client.sendall(b"x")
            assert receive_exactly(client, 7) == b"child x"
        assert child.wait(PATIENCE_S) == 0


def test_the_file_of_a_unix_socket_outlives_the_parent_that_keeps_it(loop: EventLoop, tmp_path: Path) -> None:
    address = UnixAddress(tmp_path / "s")
    acceptor = Acceptor(loop, address)
    acceptor.listen()
    with start_server(acceptor.socket, "child") as child:
        acceptor.close(keep_file=True)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE_S)
            client.connect(address.sockaddr)
            client.sendall(b"x")
            assert receive_exactly(client, 7) == b"child x"
        assert child.wait(PATIENCE_S) == 0


# --- from systemd ---


def test_descriptors_from_3_on_are_taken_with_their_names(listening: Socket, tmp_path: Path) -> None:
    with contextlib.closing(Socket.create(socket.AF_UNIX)) as unix:
        unix.bind(UnixAddress(tmp_path / "s"))
        unix.listen()
        told = as_systemd(2, "http:echo.socket", [listening, unix])
        assert told["first"] == [
            ["http", str(listening.local_address), 3, False, False],
            ["echo.socket", str(unix.local_address), 4, False, False],
        ]
        assert told["second"] == []
        assert told["left"] == []


def test_without_names_they_are_unknown(listening: Socket) -> None:
    assert as_systemd(1, None, [listening])["first"] == [
        ["unknown", str(listening.local_address), 3, False, False],
    ]


def test_what_is_meant_for_another_process_is_left_alone(listening: Socket) -> None:
    told = as_systemd(1, "http", [listening], process="1")
    assert told["first"] == []
    assert told["left"] == []


def test_a_descriptor_that_is_missing_is_named(listening: Socket) -> None:
    told = as_systemd(2, "http:gone", [listening])
    assert "inherited descriptor 4 (gone) is no socket" in told["first"]


def test_a_connection_in_place_of_a_listener_is_refused(listening: Socket) -> None:
    with socket.create_connection(listening.local_address.sockaddr, timeout=PATIENCE_S):
        (fd,) = eventually(lambda: [fd for fd in [listening.accept()[0]] if fd >= 0])
        with contextlib.closing(Socket(fd)) as connection:
            assert "neither a listening stream socket" in as_systemd(1, None, [connection])["first"]


def test_systemds_own_activator_starts_a_server(tmp_path: Path) -> None:
    if shutil.which("systemd-socket-activate") is None:
        if os.environ.get("PYMUDUO_ALL_CLIENTS"):
            pytest.fail("systemd-socket-activate is not installed")
        pytest.skip("systemd-socket-activate is not installed")
    path = tmp_path / "activated"
    command = ["systemd-socket-activate", "-l", str(path), "--fdname=front"]
    for name in ("PYTHONPATH", "PYMUDUO_POLLER"):  # it hands on no other variables than these
        command += ["-E", name] if name in os.environ else []
    command += [sys.executable, "-c", SERVE, "activated"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE_S)
                eventually(lambda: is_there(client, path))
                client.sendall(b"hello")
                client.shutdown(socket.SHUT_WR)  # the connection that has ended ends the server
                assert receive_all(client) == b"activated hello"
            assert server.wait(PATIENCE_S) == 0
        finally:
            if server.poll() is None:
                server.kill()


def is_there(client: socket.socket, path: Path) -> bool:
    try:
        client.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True
