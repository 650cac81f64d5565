"""_sys: both bodies give the same results, and every error is a number below zero."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import PATIENCE_S, eventually
from pymuduo import _sys

EPOLL_ADD, EPOLL_DELETE, EPOLL_MODIFY = 1, 2, 3


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Return the two ends of a non-blocking pipe: to read from, to write to."""
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Return a non-blocking listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        yield sock


def closed_descriptor() -> int:
    """Return a number that no descriptor has."""
    fd = os.open("/dev/null", os.O_RDONLY)
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 900)
    os.close(fd)
    os.close(high)
    return high


# --- errors are numbers ---

CALLS: dict[str, Callable[[int], Any]] = {
    "read_into": lambda fd: _sys.read_into(fd, bytearray(8), 0, 8),
    "read_into_two": lambda fd: _sys.read_into_two(fd, bytearray(8), 0, 8, bytearray(8)),
    "write_bytes": lambda fd: _sys.write_bytes(fd, b"abc", 0),
    "write_part": lambda fd: _sys.write_part(fd, bytearray(b"abc"), 1, 3),
    "write_parts": lambda fd: _sys.write_parts(fd, bytearray(b"abc"), 1, 3, [b"abc", b"def"], 0, 0),
    "write_large_parts": lambda fd: _sys.write_parts(fd, bytearray(), 0, 0, [b"a" * 40_000, b"b" * 40_000], 0, 0),
    "set_option": lambda fd: _sys.set_option(fd, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    "unread_bytes": _sys.unread_bytes,
    "shutdown_write": _sys.shutdown_write,
    "close": _sys.close,
    "accept": lambda fd: _sys.accept(fd)[0],
    "signal_eventfd": _sys.signal_eventfd,
    "arm_timerfd": lambda fd: _sys.arm_timerfd(fd, 1),
    "drain_counter": _sys.drain_counter,
    "take_error": lambda fd: -_sys.take_error(fd),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("fd", [-1, closed_descriptor()], ids=["negative", "closed"])
def test_a_bad_descriptor_is_minus_ebadf(name: str, fd: int) -> None:
    assert CALLS[name](fd) == -errno.EBADF


@pytest.mark.parametrize("name", ["set_option", "shutdown_write", "accept", "take_error"])
def test_a_descriptor_that_is_no_socket_is_minus_enotsock(pipe: tuple[int, int], name: str) -> None:
    assert CALLS[name](pipe[0]) == -errno.ENOTSOCK


@pytest.mark.parametrize("fd", [-1, closed_descriptor()], ids=["negative", "closed"])
def test_a_bad_descriptor_has_no_addresses(fd: int) -> None:
    assert _sys.local_address(fd) is None
    assert _sys.peer_address(fd) is None


# --- bytes in a bytearray ---


def test_store_and_load_copy_bytes() -> None:
    data = bytearray(10)
    _sys.store(data, 3, b"abc", 3)
    assert data == b"\0\0\0abc\0\0\0\0"
    assert _sys.load(data, 3, 3) == b"abc"
    _sys.store(data, 0, b"", 0)
    assert _sys.load(data, 0, 0) == b""
    assert len(data) == 10


def test_move_may_overlap() -> None:
    data = bytearray(b"0123456789")
    _sys.move(data, 0, 2, 8)
    assert data == b"2345678989"
    data = bytearray(b"0123456789")
    _sys.move(data, 2, 0, 8)
    assert data == b"0101234567"


def test_copy_copies_between_two() -> None:
    into = bytearray(b"..........")
    _sys.copy(into, 2, bytearray(b"0123456789"), 4, 3)
    assert into == b"..456....."


@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 5), st.data())
def test_integers_are_signed_and_in_network_order(width: int, at: int, data: st.DataObject) -> None:
    value = data.draw(st.integers(-(1 << (8 * width - 1)), (1 << (8 * width - 1)) - 1))
    where = bytearray(b"\xcc" * 16)
    _sys.store_int(where, at, width, value)
    assert where == b"\xcc" * at + value.to_bytes(width, "big", signed=True) + b"\xcc" * (16 - at - width)
    assert _sys.load_int(where, at, width) == value


@given(st.binary(max_size=20), st.binary(max_size=3), st.data())
def test_find_is_bytearray_find(data: bytes, what: bytes, draw: st.DataObject) -> None:
    begin = draw.draw(st.integers(0, len(data)))
    end = draw.draw(st.integers(begin, len(data)))
    assert _sys.find(bytearray(data), begin, end, what) == data.find(what, begin, end)


def test_is_exported_tells_whether_a_view_is_alive() -> None:
    data = bytearray(b"abc")
    assert not _sys.is_exported(data)
    with memoryview(data):
        assert _sys.is_exported(data)
    assert not _sys.is_exported(data)
    assert data == b"abc"


# --- reading and writing ---


def test_read_into_reads_into_the_given_part(pipe: tuple[int, int]) -> None:
    data = bytearray(b"..........")
    os.write(pipe[1], b"abcdef")
    assert _sys.read_into(pipe[0], data, 2, 6) == 4
    assert data == b"..abcd...."
    assert _sys.read_into(pipe[0], data, 8, 10) == 2
    assert data == b"..abcd..ef"
    assert _sys.read_into(pipe[0], data, 0, 10) == -errno.EAGAIN


def test_read_into_two_goes_on_in_the_second(pipe: tuple[int, int]) -> None:
    first, second = bytearray(b"...."), bytearray(b"....")
    os.write(pipe[1], b"abcde")
    assert _sys.read_into_two(pipe[0], first, 2, 4, second) == 5
    assert (bytes(first), bytes(second)) == (b"..ab", b"cde.")
    assert _sys.read_into_two(pipe[0], first, 2, 4, second) == -errno.EAGAIN


def test_reading_at_the_end_of_the_stream_is_0() -> None:
    read_end, write_end = os.pipe()
    os.close(write_end)
    assert _sys.read_into(read_end, bytearray(4), 0, 4) == 0
    assert _sys.read_into_two(read_end, bytearray(4), 0, 4, bytearray(4)) == 0
    os.close(read_end)


def test_write_bytes_begins_at_the_offset(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    assert _sys.write_bytes(one.fileno(), b"abcdef", 0) == 6
    assert _sys.write_bytes(one.fileno(), b"abcdef", 4) == 2
    assert other.recv(100) == b"abcdefef"


def test_write_part_writes_between_two_places(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    assert _sys.write_part(one.fileno(), bytearray(b"abcdef"), 2, 5) == 3
    assert other.recv(100) == b"cde"


@pytest.mark.parametrize("sizes", [[1, 2, 3], [2, 0, 5, 0], [2048] * 8, [2049] * 8, [1] * 64, [20_000] * 3, [9] * 63])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("front", [b"", b"front"])
def test_write_parts_writes_them_in_order(
    pair: tuple[socket.socket, socket.socket], sizes: list[int], first: int, offset: int, front: bytes
) -> None:
    one, other = pair
    chunks = [random.Random(i).randbytes(size) for i, size in enumerate([7, *sizes])]
    expected = front + b"".join(chunks[: 63 if front else 64])[offset:]  # as many as go into one call
    data, last = bytearray(b"--" + front + b"--"), [b"gone"] * first + chunks
    assert _sys.write_parts(one.fileno(), data, 2, 2 + len(front), last, first, offset) == len(expected)
    assert other.recv(1 << 20) == expected


def test_writing_to_a_full_socket_is_minus_eagain(pair: tuple[socket.socket, socket.socket]) -> None:
    one, _ = pair
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    while _sys.write_bytes(one.fileno(), b"x" * 10_000, 0) > 0:
        pass
    assert _sys.write_bytes(one.fileno(), b"x", 0) == -errno.EAGAIN
    assert _sys.write_part(one.fileno(), bytearray(b"x"), 0, 1) == -errno.EAGAIN
    assert _sys.write_parts(one.fileno(), bytearray(b"z"), 0, 1, [b"x", b"y"], 0, 0) == -errno.EAGAIN
    assert _sys.write_parts(one.fileno(), bytearray(), 0, 0, [b"x" * 50_000] * 2, 0, 0) == -errno.EAGAIN


# --- sockets ---


def test_set_option_sets_it(listener: socket.socket) -> None:
    assert _sys.set_option(listener.fileno(), socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1) == 0
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_an_option_that_does_not_exist_is_minus_enoprotoopt(listener: socket.socket) -> None:
    assert _sys.set_option(listener.fileno(), socket.SOL_SOCKET, 9999, 1) == -errno.ENOPROTOOPT


def test_unread_bytes_counts_what_waits(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    assert _sys.unread_bytes(one.fileno()) == 0
    other.send(b"abc")
    assert _sys.unread_bytes(one.fileno()) == 3


def test_shutdown_write_sends_eof(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    assert _sys.shutdown_write(one.fileno()) == 0
    assert other.recv(1) == b""
    other.send(b"x")
    assert one.recv(1) == b"x"


def test_no_pending_error_is_0(pair: tuple[socket.socket, socket.socket]) -> None:
    assert _sys.take_error(pair[0].fileno()) == 0


def test_accept_with_nobody_there_is_minus_eagain(listener: socket.socket) -> None:
    assert _sys.accept(listener.fileno()) == (-errno.EAGAIN, None)
    assert listener.fileno() >= 0
    assert listener.getsockname()  # still open


def accept_from(listening: int) -> tuple[int, Any]:
    """Return what ``accept`` returns, or something false if nobody is there yet."""
    accepted = _sys.accept(listening)
    nobody: tuple[Any, ...] = ()
    return accepted if accepted[0] >= 0 else nobody


@pytest.mark.parametrize(("family", "ip"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_accept_gives_a_non_blocking_descriptor_and_the_peer(family: int, ip: str) -> None:
    with (
        socket.create_server((ip, 0), family=family) as listener,
        socket.create_connection(listener.getsockname()[:2], timeout=PATIENCE_S) as client,
    ):
        listener.setblocking(False)
        fd, peer = eventually(lambda: accept_from(listener.fileno()))
        assert peer == (ip, client.getsockname()[1], 0)
        assert not os.get_blocking(fd)
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert _sys.peer_address(fd) == (ip, client.getsockname()[1], 0)
        assert _sys.local_address(fd) == (ip, listener.getsockname()[1], 0)
        assert _sys.close(fd) == 0


def test_a_listener_has_no_peer(listener: socket.socket) -> None:
    assert _sys.peer_address(listener.fileno()) is None


def test_a_unix_socket_that_was_never_bound_has_no_name(pair: tuple[socket.socket, socket.socket]) -> None:
    assert _sys.local_address(pair[0].fileno()) == b""
    assert _sys.peer_address(pair[0].fileno()) == b""


@pytest.mark.parametrize(
    "name",
    [b"\0pymuduo-%d" % os.getpid(), b"\0%d-a\0b\n\xff" % os.getpid(), (b"\0%d-" % os.getpid()).ljust(108, b"x")],
)
def test_a_unix_socket_has_an_abstract_name_whatever_is_in_it(name: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(name)
        assert _sys.local_address(bound.fileno()) == name


def test_a_unix_socket_has_a_path_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (b"x", b"\xff\xfe", b"y" * 107):
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path)
            assert _sys.local_address(bound.fileno()) == path


def test_accept_tells_a_unix_peer_by_its_name(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        listener.setblocking(False)
        for name, expected in ((None, b""), (b"\0peer-%d" % os.getpid(), b"\0peer-%d" % os.getpid())):
            with socket.socket(socket.AF_UNIX) as client:
                if name is not None:
                    client.bind(name)
                client.connect(str(tmp_path / "s"))
                fd, peer = _sys.accept(listener.fileno())
                assert peer == expected
                assert _sys.peer_address(fd) == expected
                assert _sys.local_address(fd) == os.fsencode(tmp_path / "s")
                assert not os.get_blocking(fd)
                assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
                _sys.close(fd)


# --- what a loop waits with ---


def test_an_eventfd_counts_and_is_drained() -> None:
    fd = _sys.make_eventfd()
    assert not os.get_blocking(fd)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert _sys.drain_counter(fd) == -errno.EAGAIN
    assert _sys.signal_eventfd(fd) == 0
    assert _sys.signal_eventfd(fd) == 0
    assert os.eventfd_read(fd) == 2
    assert _sys.signal_eventfd(fd) == 0
    assert _sys.drain_counter(fd) == 0
    assert _sys.drain_counter(fd) == -errno.EAGAIN
    assert _sys.close(fd) == 0


def test_a_full_eventfd_is_minus_eagain() -> None:
    fd = _sys.make_eventfd()
    os.eventfd_write(fd, 0xFFFFFFFFFFFFFFFE)
    assert _sys.signal_eventfd(fd) == -errno.EAGAIN
    _sys.close(fd)


@pytest.mark.parametrize("delay_us", [-5, 0, 1, 999, 1_000, 30_001])
def test_a_timerfd_expires_once_and_not_early(delay_us: int) -> None:
    fd = _sys.make_timerfd()
    assert not os.get_blocking(fd)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    begin = _sys.monotonic_us()
    assert _sys.arm_timerfd(fd, delay_us) == 0
    assert select.select([fd], [], [], PATIENCE_S)[0] == [fd]
    assert _sys.monotonic_us() - begin >= delay_us
    assert _sys.drain_counter(fd) == 0
    assert _sys.drain_counter(fd) == -errno.EAGAIN
    _sys.close(fd)


def test_a_timerfd_armed_for_a_century_does_not_overflow() -> None:
    fd = _sys.make_timerfd()
    assert _sys.arm_timerfd(fd, 100 * 365 * 86_400 * 1_000_000) == 0
    assert _sys.drain_counter(fd) == -errno.EAGAIN
    _sys.close(fd)


def test_epoll_reports_what_is_asked_for(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    epoll = _sys.Epoll(4)
    assert epoll.control(EPOLL_ADD, one.fileno(), select.EPOLLIN) == 0
    assert epoll.wait(0) == 0
    other.send(b"x")
    assert epoll.wait(1000) == 1
    assert (epoll.fd_at(0), epoll.events_at(0)) == (one.fileno(), select.EPOLLIN)
    assert epoll.control(EPOLL_MODIFY, one.fileno(), select.EPOLLOUT) == 0
    assert epoll.wait(1000) == 1
    assert epoll.events_at(0) == select.EPOLLOUT
    assert epoll.control(EPOLL_DELETE, one.fileno(), 0) == 0
    assert epoll.wait(0) == 0
    epoll.close()


def test_epoll_errors_are_numbers(pair: tuple[socket.socket, socket.socket]) -> None:
    one, _ = pair
    epoll = _sys.Epoll(4)
    assert epoll.control(EPOLL_MODIFY, one.fileno(), 1) == -errno.ENOENT
    assert epoll.control(EPOLL_DELETE, one.fileno(), 0) == -errno.ENOENT
    assert epoll.control(EPOLL_ADD, closed_descriptor(), 1) == -errno.EBADF
    assert epoll.control(EPOLL_ADD, one.fileno(), 1) == 0
    assert epoll.control(EPOLL_ADD, one.fileno(), 1) == -errno.EEXIST
    epoll.close()


def test_epoll_of_a_negative_descriptor_is_minus_ebadf() -> None:
    epoll = _sys.Epoll(4)
    assert epoll.control(EPOLL_ADD, -1, 1) == -errno.EBADF
    epoll.close()


def test_a_closed_epoll_says_so(pair: tuple[socket.socket, socket.socket]) -> None:
    epoll = _sys.Epoll(4)
    assert epoll.fileno() >= 0
    epoll.close()
    epoll.close()
    assert epoll.fileno() == -1
    assert epoll.wait(0) == -errno.EBADF
    assert epoll.control(EPOLL_ADD, pair[0].fileno(), 1) == -errno.EBADF


def test_epoll_returns_as_many_events_as_it_has_room_for_and_can_grow(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    epoll = _sys.Epoll(1)
    for end in pair:
        epoll.control(EPOLL_ADD, end.fileno(), select.EPOLLOUT)
    assert epoll.wait(0) == 1
    epoll.grow()
    assert epoll.capacity == 2
    assert epoll.wait(0) == 2
    epoll.close()


# --- clocks and threads ---


def test_the_clocks_are_those_of_the_standard_library() -> None:
    before = time.monotonic_ns() // 1000, time.time_ns() // 1000
    now = _sys.monotonic_us(), _sys.realtime_us()
    after = time.monotonic_ns() // 1000, time.time_ns() // 1000
    assert before[0] <= now[0] <= after[0]
    assert before[1] <= now[1] <= after[1]


def test_thread_id_is_threading_get_ident() -> None:
    assert _sys.thread_id() == threading.get_ident()
