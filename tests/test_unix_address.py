"""UnixAddress, and what goes with it: files that are made, taken over and removed, and servers behind them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import PATIENCE_S, ServerThread, call_in_loop, eventually, receive_all, receive_exactly
from pymuduo import Acceptor, Buffer, ConnectionState, EventLoop, InetAddress, Socket, TcpConnection, TcpServer
from pymuduo.callbacks import Address
from pymuduo.socket_file import SocketFile, is_dead
from pymuduo.unix_address import UnixAddress


def echo(connection: TcpConnection, buffer: Buffer, when: object) -> None:
    connection.send(buffer)


def connect(address: Address) -> socket.socket:
    """Return a connected blocking client with a time limit."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE_S)
    try:
        client.connect(address.sockaddr)
    except BaseException:
        client.close()
        raise
    return client


def leave_dead_file(path: Path) -> None:
    """Leave the file of a socket that is no more, as a killed server does."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()


@contextlib.contextmanager
def bound(address: Address, mode: int | None = None) -> Iterator[Socket]:
    sock = Socket.create(address.family)
    try:
        sock.bind(address, mode=mode)
        yield sock
    finally:
        sock.close()


@pytest.fixture
def address(tmp_path: Path) -> UnixAddress:
    return UnixAddress(tmp_path / "socket")


@pytest.fixture(params=["path", "abstract"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> UnixAddress:
    """Return an address of either kind that nobody else uses."""
    return UnixAddress(tmp_path / "socket") if request.param == "path" else UnixAddress.abstract(str(tmp_path))


# --- the address ---


def test_a_path_is_str_bytes_or_path_like() -> None:
    for given_path in ("/run/x.sock", b"/run/x.sock", Path("/run/x.sock")):
        address = UnixAddress(given_path)
        assert address.path == "/run/x.sock"
        assert address.sockaddr == "/run/x.sock"
        assert str(address) == "unix:/run/x.sock"
        assert repr(address) == "UnixAddress('/run/x.sock')"
        assert address.family == socket.AF_UNIX
        assert not address.is_abstract
        assert not address.is_unnamed
        assert not address.is_any
        assert address.name == b""
        assert (address.ip, address.port) == ("", 0)


def test_an_abstract_name_has_no_path() -> None:
    for name in ("name", b"name"):
        address = UnixAddress.abstract(name)
        assert address.is_abstract
        assert not address.is_unnamed
        assert address.path == ""
        assert address.name == b"name"
        assert address.sockaddr == b"\0name"
        assert str(address) == "unix:@name"
        assert repr(address) == "UnixAddress.abstract(b'name')"


def test_a_socket_without_a_name_has_an_address_too() -> None:
    address = UnixAddress.unnamed()
    assert address.is_unnamed
    assert not address.is_abstract
    assert (address.path, address.name, address.sockaddr) == ("", b"", "")
    assert str(address) == "unix:"
    assert repr(address) == "UnixAddress.unnamed()"
    assert address == UnixAddress.unnamed()


def test_equal_addresses_are_equal_and_hash_alike() -> None:
    assert UnixAddress("/a") == UnixAddress(b"/a")
    assert hash(UnixAddress("/a")) == hash(UnixAddress(b"/a"))
    assert UnixAddress("/a") != UnixAddress("/b")
    assert UnixAddress("a") != UnixAddress.abstract("a")
    assert UnixAddress("/a") != "/a"
    assert UnixAddress("/a") != InetAddress.loopback(1)
    assert InetAddress.loopback(1) != UnixAddress("/a")
    assert len({UnixAddress("/a"), UnixAddress("/a"), UnixAddress.unnamed(), UnixAddress.unnamed()}) == 2


@pytest.mark.parametrize("attribute", ["path", "name", "sockaddr", "family", "is_abstract", "ip", "port"])
def test_an_address_does_not_change(attribute: str) -> None:
    with pytest.raises(AttributeError):
        setattr(UnixAddress("/a"), attribute, "b")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "must not be empty"),
        ("/a\0b", "zero byte"),
        ("\0a", "UnixAddress.abstract"),
        ("x" * 108, "at most 107 bytes, got 108"),
        ("ä" * 54, "at most 107 bytes, got 108"),
    ],
)
def test_a_path_that_cannot_be_is_refused(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnixAddress(path)


@pytest.mark.parametrize("name", ["", "x" * 108, b"x" * 200])
def test_an_abstract_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 107 bytes"):
        UnixAddress.abstract(name)


@pytest.mark.parametrize("path", [None, 7, 1.5, object()])
def test_what_is_no_path_is_a_type_error(path: str) -> None:
    with pytest.raises(TypeError):
        UnixAddress(path)
    with pytest.raises(TypeError):
        UnixAddress.abstract(path)


def test_the_longest_path_can_be_bound_and_connected_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for address in (UnixAddress("x" * 107), UnixAddress.abstract(str(os.getpid()).ljust(107, "x"))):
        with bound(address) as sock:
            sock.listen()
            assert sock.local_address == address
            connect(address).close()


@given(st.binary(max_size=48), st.binary(max_size=48))
def test_every_abstract_name_comes_back_from_the_kernel(begin: bytes, end: bytes) -> None:
    address = UnixAddress.abstract(b"%b-%d-%b" % (begin, os.getpid(), end))  # nobody else on this machine has it
    with bound(address) as sock:
        assert sock.local_address == address
        assert sock.local_address.sockaddr == address.sockaddr


@given(st.binary(max_size=20).map(lambda b: UnixAddress.abstract(b + b".")))
def test_what_is_logged_of_an_address_is_one_printable_line(address: UnixAddress) -> None:
    assert str(address).isprintable()
    assert str(address).isascii() or str(address).encode()


# --- binding: the file ---


def test_binding_makes_a_file_and_closing_leaves_it(address: UnixAddress) -> None:
    with bound(address):
        assert stat.S_ISSOCK(os.stat(address.path).st_mode)
    assert os.path.exists(address.path)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("mode", [None, 0o600, 0o660, 0o777])
def test_the_file_has_the_permissions_that_were_asked_for(tmp_path: Path, umask: int, mode: int | None) -> None:
    # In a process of its own: the umask belongs to the whole process.
    code = f"""
import os, sys
from pymuduo import Socket
from pymuduo.unix_address import UnixAddress
os.umask({umask})
sock = Socket.create({int(socket.AF_UNIX)})
sock.bind(UnixAddress(sys.argv[1]), mode={mode})
print(oct(os.stat(sys.argv[1]).st_mode & 0o7777))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout, 8) == (0o777 & ~umask if mode is None else mode)


def test_an_abstract_name_has_no_permissions(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has none"), bound(UnixAddress.abstract(str(tmp_path)), 0o600):
        pass


def test_the_file_of_a_dead_server_is_replaced(address: UnixAddress) -> None:
    leave_dead_file(Path(address.path))
    with pytest.raises(ConnectionRefusedError):
        connect(address)
    with bound(address) as sock:
        sock.listen()
        connect(address).close()


@pytest.mark.parametrize("is_listening", [True, False], ids=["listening", "bound"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_the_socket_of_a_living_server_stays_and_it_notices_nothing(
    address: UnixAddress, kind: int, is_listening: bool
) -> None:
    with socket.socket(socket.AF_UNIX, kind) as living:
        living.bind(address.path)
        if is_listening and kind != socket.SOCK_DGRAM:
            living.listen()
        living.setblocking(False)
        number = os.stat(address.path).st_ino
        with pytest.raises(OSError, match=f"cannot bind {address}: .*in use") as caught, bound(address):
            pass
        assert caught.value.errno == errno.EADDRINUSE
        assert os.stat(address.path).st_ino == number
        if is_listening and kind != socket.SOCK_DGRAM:
            with pytest.raises(BlockingIOError):
                living.accept()


def test_a_server_whose_queue_is_full_is_alive(address: UnixAddress) -> None:
    with socket.socket(socket.AF_UNIX) as living, contextlib.ExitStack() as stack:
        living.bind(address.path)
        living.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(address.path)
        with pytest.raises(OSError, match="in use"), bound(address):
            pass


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "link", "link to a dead socket"])
def test_what_is_no_socket_is_never_removed(address: UnixAddress, kind: str) -> None:
    path = Path(address.path)
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        if kind == "link to a dead socket":
            leave_dead_file(path.with_name("target"))
        path.symlink_to("target")
    before = os.lstat(path)
    with pytest.raises(OSError, match="in use"), bound(address):
        pass
    assert os.lstat(path).st_ino == before.st_ino
    assert os.lstat(path).st_mode == before.st_mode


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match=r"cannot bind unix:.*/nowhere/s"),
        bound(UnixAddress(tmp_path / "nowhere" / "s")),
    ):
        pass


def test_an_abstract_name_in_use_is_named_and_free_again_when_its_socket_is_closed(tmp_path: Path) -> None:
    address = UnixAddress.abstract(str(tmp_path))
    with bound(address):
        with pytest.raises(OSError, match=f"cannot bind unix:@{tmp_path}") as caught, bound(address):
            pass
        assert caught.value.errno == errno.EADDRINUSE
    with bound(address):
        pass


def test_of_many_that_find_a_dead_file_one_wins_and_is_reached(address: UnixAddress) -> None:
    for _ in range(20):
        leave_dead_file(Path(address.path))
        winners: list[Socket] = []
        losers: list[int | None] = []
        barrier = threading.Barrier(6)

        def start(barrier=barrier, winners=winners, losers=losers) -> None:
            sock = Socket.create(socket.AF_UNIX)
            barrier.wait(PATIENCE_S)
            try:
                sock.bind(address)
            except OSError as e:
                losers.append(e.errno)
                sock.close()
            else:
                winners.append(sock)

        threads = [threading.Thread(target=start) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        (winner,) = winners
        assert losers == [errno.EADDRINUSE] * 5
        winner.listen()
        with connect(address):
            os.close(winner.accept()[0])
        winner.close()
        os.unlink(address.path)


def test_who_holds_the_directory_for_ever_keeps_a_dead_file_in_place(
    address: UnixAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_dead_file(Path(address.path))
    monkeypatch.setattr("pymuduo.socket_file._LOCK_PATIENCE_S", 0.05)
    directory = os.open(os.path.dirname(address.path), os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    with pytest.raises(OSError, match="in use"), bound(address):
        pass
    assert is_dead(address.path)
    os.close(directory)
    with bound(address):
        pass


def test_a_file_is_removed_once_and_only_if_it_is_still_the_same(address: UnixAddress) -> None:
    path = Path(address.path)
    with bound(address):
        file = SocketFile(address.path)
        path.rename(path.with_name("other"))
        assert not file.remove()  # there is none
        with bound(address):
            assert not file.remove()  # it is another server's
            assert path.exists()
        path.unlink()
        path.with_name("other").rename(path)
        assert file.remove()
        assert not path.exists()
        assert not file.remove()


def test_a_relative_path_is_removed_where_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sock = Socket.create(socket.AF_UNIX)
    file = sock.bind(UnixAddress("here"))
    assert file is not None
    monkeypatch.chdir("/")
    assert file.remove()
    assert not (tmp_path / "here").exists()
    sock.close()


# --- accepting ---


@pytest.fixture
def acceptor(loop: EventLoop, address: UnixAddress) -> Iterator[Acceptor]:
    """Return a listening acceptor."""
    made = Acceptor(loop, address)
    made.listen()
    yield made
    made.close()


def run_until(loop: EventLoop, condition: Callable[[], object]) -> None:
    """Run the loop until *condition* is true, for a bounded time."""
    deadline = time.monotonic() + PATIENCE_S

    def look() -> None:
        if condition() or time.monotonic() > deadline:
            loop.quit()

    timer = loop.run_every(0.001, look)
    loop.run()
    timer.cancel()
    assert condition()


def test_a_newcomer_is_handed_on_unnamed(loop: EventLoop, either: UnixAddress) -> None:
    acceptor = Acceptor(loop, either, no_delay=True)
    assert acceptor.address == either
    assert repr(acceptor) == f"<Acceptor {either} idle>"
    acceptor.listen()
    accepted: list[tuple[int, Address]] = []
    acceptor.new_connection_callback = lambda fd, peer: accepted.append((fd, peer))
    with connect(either) as client:
        run_until(loop, lambda: accepted)
        ((fd, peer),) = accepted
        assert peer == UnixAddress.unnamed()
        assert not os.get_blocking(fd)
        os.write(fd, b"hello")
        assert client.recv(10) == b"hello"
        os.close(fd)
    acceptor.close()


def test_a_newcomer_with_a_name_has_it(acceptor: Acceptor, loop: EventLoop, tmp_path: Path) -> None:
    accepted: list[tuple[int, Address]] = []
    acceptor.new_connection_callback = lambda fd, peer: accepted.append((fd, peer))
    names = [UnixAddress.abstract(f"{tmp_path}/client"), UnixAddress(tmp_path / "client")]
    with contextlib.ExitStack() as stack:
        for name in names:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.bind(name.sockaddr)
            client.connect(acceptor.address.sockaddr)
        run_until(loop, lambda: len(accepted) == 2)
    assert [peer for _, peer in accepted] == names
    for fd, _ in accepted:
        os.close(fd)


def test_the_acceptor_removes_its_file_and_keeps_it_if_told_to(loop: EventLoop, address: UnixAddress) -> None:
    acceptor = Acceptor(loop, address)
    acceptor.close(keep_file=True)
    assert is_dead(address.path)
    acceptor = Acceptor(loop, address, unix_mode=0o600)
    assert stat.S_IMODE(os.stat(address.path).st_mode) == 0o600
    acceptor.listen()
    acceptor.close()
    assert not os.path.exists(address.path)
    acceptor.close()


def test_the_acceptor_leaves_the_file_of_a_successor(acceptor: Acceptor, address: UnixAddress) -> None:
    os.unlink(address.path)  # as an impatient administrator may
    with bound(address) as successor:
        successor.listen()
        acceptor.close()
        connect(address).close()


def test_an_acceptor_that_is_dropped_removes_its_file(loop: EventLoop, address: UnixAddress) -> None:
    acceptor = Acceptor(loop, address)
    assert os.path.exists(address.path)
    del acceptor
    gc.collect()
    assert not os.path.exists(address.path)


def test_a_forked_child_removes_no_file(tmp_path: Path) -> None:
    code = """
import os, sys
from pymuduo import Acceptor, EventLoop
from pymuduo.unix_address import UnixAddress
with EventLoop() as loop:
    acceptor = Acceptor(loop, UnixAddress(sys.argv[1]))
    child = os.fork()
    if child == 0:
        acceptor.close()
        os._exit(0 if os.path.exists(sys.argv[1]) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert os.path.exists(sys.argv[1])
    acceptor.close()
    assert not os.path.exists(sys.argv[1])
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_acceptor_that_cannot_be_made_leaves_no_file(loop: EventLoop, address: UnixAddress) -> None:
    with pytest.raises(ValueError, match="reuse_port is for ports"):
        Acceptor(loop, address, reuse_port=True)
    assert not os.path.exists(address.path)


def test_a_socket_that_listens_already_is_taken_over_and_its_file_left(loop: EventLoop, address: UnixAddress) -> None:
    listening = Socket.create(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    acceptor = Acceptor(loop, None, listening=listening)
    assert acceptor.address == address
    acceptor.listen()
    accepted: list[int] = []
    acceptor.new_connection_callback = lambda fd, _: accepted.append(fd)
    with connect(address):
        run_until(loop, lambda: accepted)
    os.close(accepted[0])
    acceptor.close()
    assert is_dead(address.path)


def test_a_connection_made_by_hand_knows_its_addresses(acceptor: Acceptor, loop: EventLoop) -> None:
    made: list[TcpConnection] = []

    def serve(fd: int, peer: Address) -> None:
        connection = TcpConnection(loop, f"test-{acceptor.address}", fd, acceptor.address, peer, len(made) + 1)
        connection.message_callback = echo
        connection.connect_established()
        made.append(connection)

    acceptor.new_connection_callback = serve
    with connect(acceptor.address) as client:
        client.sendall(b"hello")
        run_until(loop, lambda: made and made[0].bytes_sent == 5)
        assert client.recv(10) == b"hello"
        (connection,) = made
        assert connection.local_address == acceptor.address
        assert connection.peer_address == UnixAddress.unnamed()
        assert connection.name == f"test-{acceptor.address}#1"
        assert connection.peer_credentials() == (os.getpid(), os.getuid(), os.getgid())
        with pytest.raises(OSError):
            connection.set_tcp_no_delay(True)
    run_until(loop, lambda: made[0].state == ConnectionState.DISCONNECTED)


# --- servers ---


@pytest.mark.parametrize("threads", [0, 2])
def test_a_server_on_a_unix_socket_echoes(
    serve: Callable[..., ServerThread], either: UnixAddress, threads: int
) -> None:
    names: list[str] = []

    def on_connection(connection: TcpConnection) -> None:
        if connection.connected:
            names.append(connection.name)
            assert connection.peer_address == UnixAddress.unnamed()
            assert connection.local_address == either

    server = serve(threads, address=either, connection_callback=on_connection, message_callback=echo)
    assert server.server.address == either
    payload = os.urandom(3_000_000)
    with connect(either) as client:
        sender = threading.Thread(target=lambda: (client.sendall(payload), client.shutdown(socket.SHUT_WR)))
        sender.start()
        assert receive_all(client) == payload
        sender.join(PATIENCE_S)
    eventually(lambda: server.server.connection_count == 0)
    assert names == [f"test-{either}#1"]


def test_a_server_tells_strangers_by_their_credentials(
    serve: Callable[..., ServerThread], address: UnixAddress
) -> None:
    def on_connection(connection: TcpConnection) -> None:
        if connection.connected:
            credentials = connection.peer_credentials()
            connection.send(f"{credentials.pid} {credentials.uid} {credentials.gid}".encode())
            connection.shutdown()

    serve(1, address=address, connection_callback=on_connection)
    with connect(address) as client:
        assert receive_all(client) == f"{os.getpid()} {os.getuid()} {os.getgid()}".encode()


def test_the_file_of_a_server_has_its_mode_and_goes_when_the_server_stops(
    serve: Callable[..., ServerThread], address: UnixAddress
) -> None:
    server = serve(0, address=address, unix_mode=0o620)
    assert stat.S_IMODE(os.stat(address.path).st_mode) == 0o620
    server.server.stop()
    assert server.server.join(PATIENCE_S)
    assert not os.path.exists(address.path)


def test_a_second_server_is_refused_and_the_first_one_lives(
    serve: Callable[..., ServerThread], loop: EventLoop, address: UnixAddress
) -> None:
    serve(0, address=address, message_callback=echo)
    with pytest.raises(OSError, match="in use"):
        TcpServer(loop, address, "second")
    with connect(address) as client:
        client.sendall(b"x")
        assert receive_exactly(client, 1) == b"x"


def test_a_killed_server_is_followed_by_another(serve: Callable[..., ServerThread], address: UnixAddress) -> None:
    code = """
import sys
from pymuduo import EventLoop, TcpServer
from pymuduo.unix_address import UnixAddress
with EventLoop() as loop:
    TcpServer(loop, UnixAddress(sys.argv[1]), "first").start()
    print("ready", flush=True)
    loop.run()
"""
    command = [sys.executable, "-c", code, address.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"ready\n"
        first.kill()
        first.wait(PATIENCE_S)
    assert is_dead(address.path)
    serve(0, address=address, message_callback=echo)
    with connect(address) as client:
        client.sendall(b"x")
        assert receive_exactly(client, 1) == b"x"


def test_a_server_takes_no_port_options_for_a_unix_socket(loop: EventLoop, address: UnixAddress) -> None:
    with pytest.raises(ValueError):
        TcpServer(loop, address, "test", reuse_port=True)
    with pytest.raises(ValueError):
        TcpServer(loop, address, "test", acceptors="per-loop")
    with pytest.raises(ValueError):
        TcpServer(loop, InetAddress.loopback(0), "test", unix_mode=0o600)
    assert not os.path.exists(address.path)


def test_a_server_stopped_in_good_order_serves_those_in_the_queue(
    serve: Callable[..., ServerThread], address: UnixAddress
) -> None:
    server = serve(0, address=address, message_callback=echo)
    with contextlib.ExitStack() as stack:
        clients: list[socket.socket] = []

        def hold_up_and_stop() -> None:
            # In the loop's thread: nobody is accepted meanwhile.
            for _ in range(50):
                clients.append(stack.enter_context(connect(address)))
            server.server.stop(drain_s=PATIENCE_S, grace_s=PATIENCE_S)

        call_in_loop(server.loop, hold_up_and_stop)
        for client in clients:
            client.sendall(b"late")
            assert receive_exactly(client, 4) == b"late"


# --- clients that are not ours ---

PAYLOAD = b"".join(b"line %d\n" % i for i in range(50_000))


def run_client(command: list[str], data: bytes) -> bytes:
    """Run a client with *data* as its input and return what it printed; skip if it is not installed."""
    if shutil.which(command[0]) is None:
        if os.environ.get("PYMUDUO_ALL_CLIENTS"):
            pytest.fail(f"{command[0]} is not installed")
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, input=data, stdout=subprocess.PIPE, timeout=PATIENCE_S, check=False)
    return done.stdout


@pytest.mark.parametrize("name", ["nc", "ncat", "socat"])
def test_a_foreign_client_gets_the_whole_echo(
    serve: Callable[..., ServerThread], address: UnixAddress, name: str
) -> None:
    command = {
        "nc": ["nc", "-N", "-U", address.path],
        "ncat": ["ncat", "-U", address.path],
        "socat": ["socat", "-t", "15", "-", f"UNIX-CONNECT:{address.path}"],
    }[name]
    server = serve(1, address=address, message_callback=echo)
    assert run_client(command, PAYLOAD) == PAYLOAD
    eventually(lambda: server.server.connection_count == 0)


def test_socat_reaches_an_abstract_name(serve: Callable[..., ServerThread], tmp_path: Path) -> None:
    address = UnixAddress.abstract(str(tmp_path))
    serve(1, address=address, message_callback=echo)
    assert run_client(["socat", "-t", "15", "-", f"ABSTRACT-CONNECT:{tmp_path}"], PAYLOAD) == PAYLOAD


def test_curl_gets_a_page_over_a_unix_socket(serve: Callable[..., ServerThread], address: UnixAddress) -> None:
    def answer(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        if buffer.find(b"\r\n\r\n") >= 0:
            buffer.retrieve_all()
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
            connection.shutdown()

    serve(0, address=address, message_callback=answer)
    command = ["curl", "--silent", "--max-time", "15", "--unix-socket", address.path, "http://localhost/"]
    assert run_client(command, b"") == b"hello"
