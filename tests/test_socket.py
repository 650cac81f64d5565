"""Socket: owns a descriptor, sets options, and names addresses in its errors."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import PATIENCE_S, eventually, reset
from pymuduo import InetAddress, Socket
from pymuduo.callbacks import Address
from pymuduo.unix_address import UnixAddress


@pytest.fixture
def sock() -> Iterator[Socket]:
    """Return an unbound IPv4 socket."""
    made = Socket.create(socket.AF_INET)
    yield made
    made.close()


@pytest.fixture
def listener(sock: Socket) -> Socket:
    """Return a socket that listens on a free port of the loopback."""
    sock.bind(InetAddress.loopback(0))
    sock.listen()
    return sock


@pytest.fixture
def pair(listener: Socket) -> Iterator[tuple[Socket, socket.socket]]:
    """Return the two ends of a TCP connection: ours, and a plain blocking one."""
    with socket.create_connection(listener.local_address.sockaddr, timeout=PATIENCE_S) as theirs:
        ours = Socket(accept_from(listener)[0])
        yield ours, theirs
        ours.close()


def accept_from(listener: Socket) -> tuple[int, Address | None]:
    """Accept one connection, for which a client has connected already."""

    def accept() -> list[tuple[int, Address | None]]:
        accepted = listener.accept()
        return [accepted] if accepted[0] >= 0 else []

    return eventually(accept)[0]


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def option(sock: Socket, level: int, name: int) -> int:
    """Return an option as the kernel has it, asked without the class under test."""
    with socket.socket(fileno=os.dup(sock.fd)) as copy:
        return copy.getsockopt(level, name)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_a_new_socket_is_non_blocking_and_close_on_exec(family: int) -> None:
    made = Socket.create(family)
    assert not os.get_blocking(made.fd)
    assert fcntl.fcntl(made.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert option(made, socket.SOL_SOCKET, socket.SO_DOMAIN) == family
    assert option(made, socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
    made.close()


def test_an_accepted_socket_is_non_blocking_and_close_on_exec(pair: tuple[Socket, socket.socket]) -> None:
    ours, _ = pair
    assert not os.get_blocking(ours.fd)
    assert fcntl.fcntl(ours.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_accept_tells_the_peer(listener: Socket) -> None:
    with socket.create_connection(listener.local_address.sockaddr, timeout=PATIENCE_S) as client:
        fd, peer = accept_from(listener)
        os.close(fd)
        assert peer == InetAddress(*client.getsockname())


def test_accept_with_nobody_there_is_eagain(listener: Socket) -> None:
    assert listener.accept() == (-errno.EAGAIN, None)


@pytest.mark.parametrize(
    ("setter", "level", "name"),
    [
        ("set_reuse_address", socket.SOL_SOCKET, socket.SO_REUSEADDR),
        ("set_reuse_port", socket.SOL_SOCKET, socket.SO_REUSEPORT),
        ("set_keep_alive", socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        ("set_tcp_no_delay", socket.IPPROTO_TCP, socket.TCP_NODELAY),
    ],
)
def test_an_option_can_be_set_and_taken_back(sock: Socket, setter: str, level: int, name: int) -> None:
    for on in (True, False, True):
        getattr(sock, setter)(on)
        assert bool(option(sock, level, name)) is on
        assert bool(sock.get_option(level, name)) is on


def test_both_ends_know_their_addresses(pair: tuple[Socket, socket.socket]) -> None:
    ours, theirs = pair
    assert ours.local_address == InetAddress(*theirs.getpeername())
    assert ours.peer_address == InetAddress(*theirs.getsockname())


def test_is_listening_tells_whether_peers_can_connect(sock: Socket) -> None:
    sock.bind(InetAddress.loopback(0))
    assert not sock.is_listening
    sock.listen()
    assert sock.is_listening


def test_both_ends_of_a_unix_connection_know_their_addresses(tmp_path: Path) -> None:
    address = UnixAddress(tmp_path / "s")
    with contextlib.closing(Socket.create(socket.AF_UNIX)) as listener, socket.socket(socket.AF_UNIX) as theirs:
        listener.bind(address)
        listener.listen()
        assert listener.local_address == address
        theirs.connect(address.sockaddr)
        fd, peer = accept_from(listener)
        with contextlib.closing(Socket(fd)) as ours:
            assert peer == UnixAddress.unnamed()
            assert ours.local_address == address
            assert ours.peer_address == UnixAddress.unnamed()


def test_a_unix_peer_has_credentials(tmp_path: Path) -> None:
    with contextlib.closing(Socket.create(socket.AF_UNIX)) as listener, socket.socket(socket.AF_UNIX) as theirs:
        listener.bind(UnixAddress(tmp_path / "s"))
        listener.listen()
        theirs.connect(str(tmp_path / "s"))
        with contextlib.closing(Socket(accept_from(listener)[0])) as ours:
            credentials = ours.peer_credentials()
            assert credentials == (os.getpid(), os.getuid(), os.getgid())
            assert (credentials.pid, credentials.uid, credentials.gid) == credentials


def test_a_peer_in_another_process_has_that_ones_pid(tmp_path: Path) -> None:
    code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"
    with contextlib.closing(Socket.create(socket.AF_UNIX)) as listener:
        listener.bind(UnixAddress(tmp_path / "s"))
        listener.listen()
        with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "s")]) as client:
            with contextlib.closing(Socket(accept_from(listener)[0])) as ours:
                assert ours.peer_credentials().pid == client.pid
            assert client.wait(PATIENCE_S) == 0


def test_credentials_of_nobody_are_an_error(pair: tuple[Socket, socket.socket]) -> None:
    with pytest.raises(OSError, match="is no Unix socket") as caught:
        pair[0].peer_credentials()
    assert caught.value.errno == errno.EOPNOTSUPP
    with contextlib.closing(Socket.create(socket.AF_UNIX)) as alone:
        with pytest.raises(OSError, match="has no peer") as caught:
            alone.peer_credentials()
        assert caught.value.errno == errno.ENOTCONN


def test_port_0_becomes_the_port_that_the_kernel_chose(sock: Socket) -> None:
    sock.bind(InetAddress.loopback(0))
    assert sock.local_address.ip == "127.0.0.1"
    assert sock.local_address.port > 0


def test_an_ipv6_socket_on_any_serves_ipv4_too() -> None:
    with contextlib.closing(Socket.create(socket.AF_INET6)) as made:
        made.bind(InetAddress.any(0, ipv6=True))
        made.listen()
        with socket.create_connection(("127.0.0.1", made.local_address.port), timeout=PATIENCE_S) as client:
            fd, peer = accept_from(made)
            os.close(fd)
            assert peer == InetAddress("::ffff:127.0.0.1", client.getsockname()[1])


def test_half_close_sends_eof_and_still_receives(pair: tuple[Socket, socket.socket]) -> None:
    ours, theirs = pair
    assert ours.shutdown_write() == 0
    assert theirs.recv(1) == b""
    theirs.sendall(b"late")
    eventually(lambda: _has_input(ours))
    assert os.read(ours.fd, 10) == b"late"


def _has_input(sock: Socket) -> bool:
    with socket.socket(fileno=os.dup(sock.fd)) as copy:
        try:
            return bool(copy.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False


def test_half_close_of_an_unconnected_socket_is_enotconn(sock: Socket) -> None:
    assert sock.shutdown_write() == -errno.ENOTCONN


def test_tcp_info_is_plausible(pair: tuple[Socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(b"x")
    eventually(lambda: _has_input(ours))
    info = ours.tcp_info()
    assert info.state == 1  # ESTABLISHED
    assert 500 <= info.snd_mss <= 65535
    assert 500 <= info.rcv_mss <= 65535
    assert 0 < info.rtt < 60_000_000
    assert info.rto >= 1000
    assert info.snd_cwnd >= 1
    assert info.retrans == 0
    assert info.lost == 0
    assert info.unacked == 0


def test_tcp_info_of_a_listener_says_so(listener: Socket) -> None:
    assert listener.tcp_info().state == 10  # LISTEN


def test_take_error_takes_the_error_once(pair: tuple[Socket, socket.socket]) -> None:
    ours, theirs = pair
    reset(theirs)
    eventually(lambda: ours.tcp_info().state == 7)  # CLOSE
    assert ours.take_error() == errno.ECONNRESET
    assert ours.take_error() == 0


def test_close_closes_the_descriptor_and_twice_is_harmless() -> None:
    made = Socket.create(socket.AF_INET)
    fd = made.fd
    made.close()
    assert made.fd == -1
    assert not is_open(fd)
    other = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)  # takes the same number, most likely
    made.close()
    assert is_open(other)
    os.close(other)


def test_dropping_the_last_reference_closes_the_descriptor() -> None:
    made = Socket.create(socket.AF_INET)
    fd = made.fd
    del made
    gc.collect()
    assert not is_open(fd)


def test_a_socket_that_could_not_be_made_closes_no_descriptor() -> None:
    # In a process of its own: what is closed here by mistake is descriptor 0.
    code = """
import gc, os
from pymuduo import Socket
os.fstat(0)
for args in ((), ("x",), (1, 2)):
    try:
        Socket(*args)
    except TypeError:
        pass
    gc.collect()
    os.fstat(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_repr_names_the_descriptor(sock: Socket) -> None:
    assert repr(sock) == f"<Socket fd={sock.fd}>"
    sock.close()
    assert repr(sock) == "<Socket closed>"


# --- errors ---


def test_a_port_in_use_is_named(listener: Socket) -> None:
    address = listener.local_address
    with contextlib.closing(Socket.create(socket.AF_INET)) as second:
        with pytest.raises(OSError, match=rf"bind {address}: .*in use") as caught:
            second.bind(address)
        assert caught.value.errno == errno.EADDRINUSE


def test_an_address_that_is_not_ours_is_named(sock: Socket) -> None:
    with pytest.raises(OSError, match=r"192\.0\.2\.1:0") as caught:
        sock.bind(InetAddress("192.0.2.1", 0))
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_a_port_taken_between_bind_and_listen_is_named(sock: Socket) -> None:
    with contextlib.closing(Socket.create(socket.AF_INET)) as second:
        sock.set_reuse_address(True)
        second.set_reuse_address(True)
        sock.bind(InetAddress.loopback(0))
        second.bind(sock.local_address)
        sock.listen()
        with pytest.raises(OSError, match=str(sock.local_address)) as caught:
            second.listen()
        assert caught.value.errno == errno.EADDRINUSE


def test_permissions_are_for_files(sock: Socket) -> None:
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:0 has none"):
        sock.bind(InetAddress.loopback(0), mode=0o600)


def test_reuse_port_lets_two_listen(sock: Socket) -> None:
    with contextlib.closing(Socket.create(socket.AF_INET)) as second:
        sock.set_reuse_port(True)
        second.set_reuse_port(True)
        sock.bind(InetAddress.loopback(0))
        sock.listen()
        second.bind(sock.local_address)
        second.listen()
        assert second.local_address == sock.local_address


def test_no_peer_is_enotconn(sock: Socket) -> None:
    with pytest.raises(OSError, match="has no peer") as caught:
        _ = sock.peer_address
    assert caught.value.errno == errno.ENOTCONN


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.bind(InetAddress.loopback(0)),
        lambda s: s.listen(),
        lambda s: s.local_address,
        lambda s: s.peer_address,
        lambda s: s.set_reuse_address(True),
        lambda s: s.set_tcp_no_delay(True),
        lambda s: s.get_option(socket.SOL_SOCKET, socket.SO_REUSEADDR),
        lambda s: s.tcp_info(),
        lambda s: s.is_listening,
        lambda s: s.peer_credentials(),
    ],
    ids=[
        "bind",
        "listen",
        "local",
        "peer",
        "reuse",
        "no_delay",
        "get_option",
        "tcp_info",
        "is_listening",
        "credentials",
    ],
)
def test_using_a_closed_socket_raises_os_error(sock: Socket, use: object) -> None:
    assert callable(use)
    sock.close()
    with pytest.raises(OSError):
        use(sock)


def test_what_reports_by_number_reports_a_closed_socket_so(sock: Socket) -> None:
    sock.close()
    assert sock.shutdown_write() == -errno.EBADF
    assert sock.take_error() == errno.EBADF
    assert sock.accept() == (-errno.EBADF, None)
