"""Buffer: what muduo's Buffer_unittest promises, and what views, scratch memory and errors add to it."""

from __future__ import annotations

import array
import contextlib
import errno
import gc
import os
import socket
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pymuduo import COMPILED, Buffer

INITIAL = 1024  # writable bytes of a new buffer, as in muduo
PREPEND = 8
SCRATCH = 65536 + PREPEND
SOUGHT = [b"\0", b"\1", b"\0\1", b"\0\0"]  # a buffer remembers what it was last looked through for

exports_a_buffer = pytest.mark.skipif(
    not COMPILED and sys.version_info < (3, 12), reason="a Python class can export a buffer since 3.12 (PEP 688)"
)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Return the two ends of a non-blocking pipe: to read from, to write to."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield read_end, write_end
    os.close(read_end)
    with contextlib.suppress(OSError):  # the test may have closed it
        os.close(write_end)


@pytest.fixture
def stream() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return a connected pair of sockets that holds more than 200 KB."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


# --- muduo's scenarios ---


def test_a_new_buffer_is_empty_with_room_at_both_ends() -> None:
    buf = Buffer()
    assert len(buf) == buf.readable_bytes == 0
    assert buf.writable_bytes == INITIAL
    assert buf.prependable_bytes == PREPEND


def test_append_and_retrieve_move_the_bounds() -> None:
    buf = Buffer()
    buf.append(b"x" * 200)
    assert (len(buf), buf.writable_bytes, buf.prependable_bytes) == (200, INITIAL - 200, PREPEND)
    assert buf.retrieve_as_bytes(50) == b"x" * 50
    assert (len(buf), buf.writable_bytes, buf.prependable_bytes) == (150, INITIAL - 200, PREPEND + 50)
    buf.append(b"x" * 200)
    assert (len(buf), buf.writable_bytes, buf.prependable_bytes) == (350, INITIAL - 400, PREPEND + 50)
    assert buf.retrieve_all_as_bytes() == b"x" * 350
    assert (len(buf), buf.writable_bytes, buf.prependable_bytes) == (0, INITIAL, PREPEND)


def test_it_grows_when_there_is_no_room() -> None:
    buf = Buffer()
    buf.append(b"y" * 400)
    buf.retrieve(50)
    buf.append(b"z" * 1000)
    assert bytes(buf) == b"y" * 350 + b"z" * 1000
    assert buf.prependable_bytes == PREPEND


def test_it_reuses_room_at_the_front_instead_of_growing() -> None:
    buf = Buffer()
    buf.append(b"y" * 800)
    buf.retrieve(500)
    capacity = buf.capacity
    buf.append(b"z" * 300)
    assert bytes(buf) == b"y" * 300 + b"z" * 300
    assert (buf.writable_bytes, buf.prependable_bytes) == (INITIAL - 600, PREPEND)
    assert buf.capacity == capacity


def test_shrink_gives_memory_back_and_keeps_the_content() -> None:
    buf = Buffer()
    buf.append(b"y" * 2000)
    buf.retrieve(1500)
    buf.shrink()
    assert bytes(buf) == b"y" * 500
    assert buf.capacity == PREPEND + 500
    assert buf.writable_bytes == 0


def test_shrink_keeps_a_reserve() -> None:
    buf = Buffer()
    buf.append(b"y" * 2000)
    buf.retrieve_all()
    buf.shrink(100)
    assert buf.writable_bytes == 100
    assert buf.capacity == PREPEND + 100


def test_prepend_uses_the_room_in_front() -> None:
    buf = Buffer()
    buf.append(b"y" * 200)
    buf.prepend(b"head")
    assert bytes(buf) == b"head" + b"y" * 200
    assert (buf.writable_bytes, buf.prependable_bytes) == (INITIAL - 200, PREPEND - 4)


def test_prepend_of_more_than_the_room_in_front_makes_room() -> None:
    buf = Buffer(b"tail")
    buf.prepend(b"h" * 1000)
    assert bytes(buf) == b"h" * 1000 + b"tail"
    assert buf.prependable_bytes == PREPEND


def test_prepend_to_a_buffer_without_memory() -> None:
    buf = Buffer(b"x")
    buf.retrieve_all()
    buf.give_back()
    assert buf.capacity == 0
    buf.prepend(b"abc")
    assert bytes(buf) == b"abc"


def test_read_and_peek_int_of_every_width() -> None:
    buf = Buffer(b"HTTP")
    assert len(buf) == 4
    assert buf.peek_int8() == ord("H")
    assert buf.peek_int16() == ord("H") * 256 + ord("T")
    assert buf.peek_int32() == int.from_bytes(b"HTTP", "big")
    assert buf.read_int8() == ord("H")
    assert buf.read_int16() == ord("T") * 256 + ord("T")
    assert buf.read_int8() == ord("P")
    assert len(buf) == 0


def test_find_eol_in_a_buffer_without_one() -> None:
    buf = Buffer()
    buf.append(b"x" * 100_000)
    assert buf.find_eol() == -1
    assert buf.find_eol(90_000) == -1


def test_swap_exchanges_everything() -> None:
    one, other = Buffer(b"one"), Buffer(b"other")
    capacities = one.capacity, other.capacity
    one.swap(other)
    assert (bytes(one), bytes(other)) == (b"other", b"one")
    assert (other.capacity, one.capacity) == capacities


def test_swap_with_itself_changes_nothing() -> None:
    buf = Buffer(b"same")
    buf.swap(buf)
    assert bytes(buf) == b"same"


def test_swap_with_a_borrower_leaves_nobody_in_the_scratch_area(pipe: tuple[int, int]) -> None:
    scratch = bytearray(SCRATCH)
    borrower, other = Buffer(0), Buffer(b"owned")
    os.write(pipe[1], b"borrowed")
    borrower.read_fd(pipe[0], scratch)
    borrower.swap(other)
    scratch[:] = bytes(SCRATCH)
    assert (bytes(borrower), bytes(other)) == (b"owned", b"borrowed")


@pytest.mark.parametrize("wrong", ["None", "5", "b'x'"])
def test_swap_with_what_is_no_buffer_raises(wrong: str) -> None:
    # In a process of its own: a compiled build that takes None here ends the process.
    code = f"""
from pymuduo import Buffer
try:
    Buffer().swap({wrong})
except (TypeError, AttributeError):
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "refused\n")


# --- making one ---


def test_made_of_a_size_it_has_that_much_room() -> None:
    assert Buffer(10).writable_bytes == 10
    assert Buffer(0).writable_bytes == 0


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_made_of_bytes_it_holds_a_copy(kind: Callable[[bytes], Any]) -> None:
    assert bytes(Buffer(kind(b"abc"))) == b"abc"


def test_a_negative_size_is_refused_with_its_value() -> None:
    with pytest.raises(ValueError, match="-5"):
        Buffer(-5)


def test_a_buffer_can_be_weakly_referenced() -> None:
    buf = Buffer()
    assert weakref.ref(buf)() is buf


# --- append ---


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, Buffer])
def test_append_takes_bytes_likes_and_buffers_and_leaves_them(kind: Callable[[bytes], Any]) -> None:
    data = kind(b"abc")
    buf = Buffer(b">")
    buf.append(data)
    buf.append(data)
    assert bytes(buf) == b">abcabc"
    assert bytes(data) == b"abc"


def test_append_takes_a_subclass_of_bytes() -> None:
    class Payload(bytes):
        pass

    buf = Buffer()
    buf.append(Payload(b"abc"))
    assert bytes(buf) == b"abc"


def test_append_of_a_view_of_wide_items_appends_its_bytes() -> None:
    numbers = array.array("H", [1, 2, 3])
    buf = Buffer()
    buf.append(memoryview(numbers))
    assert bytes(buf) == numbers.tobytes()


def test_append_of_a_strided_view_appends_what_it_shows() -> None:
    buf = Buffer()
    buf.append(memoryview(b"a-b-c-")[::2])
    assert bytes(buf) == b"abc"


def test_append_copies_what_is_mutable() -> None:
    data = bytearray(b"abc")
    buf = Buffer()
    buf.append(data)
    data[:] = b"XYZ"
    assert bytes(buf) == b"abc"


def test_append_of_itself_doubles_it() -> None:
    buf = Buffer(b"ab")
    buf.append(buf)
    assert bytes(buf) == b"abab"


def test_append_of_nothing_changes_nothing() -> None:
    buf = Buffer(b"ab")
    buf.append(b"")
    assert bytes(buf) == b"ab"
    empty = Buffer(b"")
    empty.append(b"")
    assert bytes(empty) == b""


@pytest.mark.parametrize("wrong", ["text", 5, None, [1, 2], object()])
def test_append_or_prepend_of_anything_else_raises_type_error_naming_its_type(wrong: Any) -> None:
    buf = Buffer(b"ab")
    for add in (buf.append, buf.prepend):
        with pytest.raises(TypeError, match=type(wrong).__name__):
            add(wrong)
    assert bytes(buf) == b"ab"


def test_many_appends_keep_their_order() -> None:
    buf = Buffer(0)
    pieces = [bytes([i % 256]) * (i % 97) for i in range(2000)]
    for piece in pieces:
        buf.append(piece)
    assert bytes(buf) == b"".join(pieces)


# --- retrieve ---


@pytest.mark.parametrize("take", ["retrieve", "retrieve_as_bytes", "peek"])
def test_asking_for_more_than_there_is_raises_and_changes_nothing(take: str) -> None:
    buf = Buffer(b"abc")
    with pytest.raises(ValueError, match="4 bytes asked for, 3 readable"):
        getattr(buf, take)(4)
    assert bytes(buf) == b"abc"


@pytest.mark.parametrize("take", ["retrieve", "retrieve_as_bytes"])
def test_retrieving_a_negative_count_raises_and_changes_nothing(take: str) -> None:
    buf = Buffer(b"abc")
    with pytest.raises(ValueError, match="-1"):
        getattr(buf, take)(-1)
    assert bytes(buf) == b"abc"


def test_retrieve_drops_from_the_front() -> None:
    buf = Buffer(b"abcdef")
    buf.retrieve(2)
    assert bytes(buf) == b"cdef"
    buf.retrieve(0)
    assert bytes(buf) == b"cdef"
    buf.retrieve(4)
    assert bytes(buf) == b""


def test_retrieve_all_of_an_empty_buffer_is_harmless() -> None:
    buf = Buffer()
    buf.retrieve_all()
    assert buf.retrieve_all_as_bytes() == b""
    assert buf.retrieve_as_bytes(0) == b""


def test_retrieved_bytes_are_a_copy() -> None:
    buf = Buffer(b"abc")
    taken = buf.retrieve_as_bytes(3)
    buf.append(b"xyz")
    assert taken == b"abc"
    assert type(taken) is bytes


# --- integers ---

WIDTHS = [8, 16, 32, 64]


@pytest.mark.parametrize("bits", WIDTHS)
def test_an_integer_is_signed_and_in_network_byte_order(bits: int) -> None:
    code = {8: ">b", 16: ">h", 32: ">i", 64: ">q"}[bits]
    for value in (-(1 << (bits - 1)), -2, -1, 0, 1, 0x12, (1 << (bits - 1)) - 1):
        buf = Buffer()
        getattr(buf, f"append_int{bits}")(value)
        assert bytes(buf) == struct.pack(code, value)
        assert getattr(buf, f"peek_int{bits}")() == value
        assert getattr(buf, f"read_int{bits}")() == value
        assert len(buf) == 0
        getattr(buf, f"prepend_int{bits}")(value)
        assert bytes(buf) == struct.pack(code, value)


def test_network_byte_order_to_the_byte() -> None:
    buf = Buffer()
    buf.append_int32(0x01020304)
    assert bytes(buf) == b"\x01\x02\x03\x04"
    buf.prepend_int16(-2)
    assert bytes(buf) == b"\xff\xfe\x01\x02\x03\x04"


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("where", ["append", "prepend"])
def test_an_integer_out_of_range_is_refused_with_its_value(bits: int, where: str) -> None:
    for value in (1 << (bits - 1), -(1 << (bits - 1)) - 1, 1 << 100):
        buf = Buffer(b"ab")
        with pytest.raises(ValueError, match=rf"int{bits} must be .*, got {value}"):
            getattr(buf, f"{where}_int{bits}")(value)
        assert bytes(buf) == b"ab"


@pytest.mark.parametrize("wrong", ["1", 1.0, None])
def test_an_integer_that_is_none_is_refused(wrong: Any) -> None:
    buf = Buffer()
    for name in ("append_int8", "append_int64", "prepend_int16"):
        with pytest.raises(TypeError, match="an int is required"):
            getattr(buf, name)(wrong)
    assert len(buf) == 0


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("how", ["peek", "read"])
def test_an_integer_of_which_a_byte_is_missing_raises_and_changes_nothing(bits: int, how: str) -> None:
    content = b"\x01" * (bits // 8 - 1)
    buf = Buffer(content)
    with pytest.raises(ValueError, match=rf"{bits // 8} bytes asked for, {bits // 8 - 1} readable"):
        getattr(buf, f"{how}_int{bits}")()
    assert bytes(buf) == content


@given(st.sampled_from(WIDTHS), st.data())
def test_every_integer_comes_back(bits: int, data: st.DataObject) -> None:
    value = data.draw(st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1))
    buf = Buffer(0)
    getattr(buf, f"append_int{bits}")(value)
    assert getattr(buf, f"read_int{bits}")() == value


# --- find ---


def test_find_returns_the_offset_from_the_front() -> None:
    buf = Buffer(b"..GET / HTTP\r\nHost\n")
    buf.retrieve(2)
    assert buf.find(b"G") == 0
    assert buf.find(b"HTTP") == 6
    assert buf.find_crlf() == 10
    assert buf.find_eol() == 11


def test_find_begins_at_start() -> None:
    buf = Buffer(b"a\r\nb\r\nc\n")
    assert buf.find_crlf(0) == 1
    assert buf.find_crlf(1) == 1
    assert buf.find_crlf(2) == 4
    assert buf.find_crlf(5) == -1
    assert buf.find_eol(6) == 7
    assert buf.find(b"b", 3) == 3
    assert buf.find(b"b", 4) == -1
    assert buf.find(b"c", 8) == -1


def test_find_sees_neither_retrieved_bytes_nor_those_beyond_the_end() -> None:
    buf = Buffer()
    buf.append(b"needle")
    buf.retrieve(5)
    assert buf.find(b"needle") == -1
    buf.retrieve_all()
    assert buf.find(b"e") == -1
    buf.append(b"nee")
    assert buf.find(b"needle") == -1  # "dle" is still in memory behind it


def test_find_of_half_a_crlf_is_not_enough() -> None:
    assert Buffer(b"abc\r").find_crlf() == -1
    assert Buffer(b"\n\r").find_crlf() == -1


@pytest.mark.parametrize(
    "change",
    [
        lambda buf: buf.retrieve(2),
        lambda buf: buf.retrieve_as_bytes(3),
        lambda buf: buf.retrieve_all(),
        lambda buf: buf.read_int32(),
        lambda buf: buf.prepend(b"a\n"),
        lambda buf: buf.swap(Buffer(b"a\n")),
        lambda buf: Buffer(b"a\n").swap(buf),
        lambda buf: buf.take_prefixed(1, 100),
        lambda buf: buf.take_delimited(b"b", 100),
        lambda buf: buf.shrink(),
    ],
)
def test_what_was_sought_in_vain_is_found_when_it_is_there_whatever_becomes_of_the_front(change) -> None:
    buf = Buffer(b"\2bcd")
    assert buf.find_eol() == -1
    change(buf)
    buf.append(b"\n")
    assert buf.find_eol() == bytes(buf).index(b"\n")


def test_what_was_looked_through_for_one_thing_is_looked_through_for_another() -> None:
    buf = Buffer(b"*2\r\n$3\r\nabc\r\n$9\r\n")
    blocks = {b"$3": 0}
    assert buf.take_requests(1000, 10) == []
    assert buf.find(b"abc") == 8
    assert buf.take_delimited(b"?", 1000) == []
    assert buf.take_requests(1000, 10) == []
    assert buf.take_delimited(b"a", 1000) == [b"*2\r\n$3\r\n"]
    assert buf.find(b"?") == -1
    assert buf.take_commands(blocks, 1000, 10, 1000) == [[b"bc"], [b"$9"]]
    buf.append(b"*1\r\n$2\r\n")
    assert buf.take_requests(1000, 10) == []
    assert buf.take_commands(blocks, 1000, 10, 1000) == [[b"*1"], [b"$2"]]


def test_find_of_nothing_is_at_start() -> None:
    assert Buffer(b"abc").find(b"") == 0
    assert Buffer(b"abc").find(b"", 2) == 2


@pytest.mark.parametrize("start", [-1, 4])
def test_find_from_outside_the_content_raises_with_the_value(start: int) -> None:
    with pytest.raises(ValueError, match=rf"0\.\.3, got {start}"):
        Buffer(b"abc").find(b"a", start)


@pytest.mark.parametrize("wrong", ["a", 97, bytearray(b"a"), None])
def test_find_of_what_is_not_bytes_raises_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError):
        Buffer(b"abc").find(wrong)


# --- views ---


def test_peek_shows_the_front_without_taking_it() -> None:
    buf = Buffer(b"abcdef")
    assert bytes(buf.peek(3)) == b"abc"
    assert bytes(buf.peek()) == b"abcdef"
    assert bytes(buf.peek(0)) == b""
    assert len(buf) == 6


def test_a_peek_is_read_only() -> None:
    view = Buffer(b"abc").peek()
    assert view.readonly
    with pytest.raises(TypeError):
        view[0] = 0


@exports_a_buffer
def test_a_memoryview_of_it_is_read_only_and_shows_the_content() -> None:
    buf = Buffer(b"..abc")
    buf.retrieve(2)
    with memoryview(buf) as view:
        assert view.readonly
        assert (view.nbytes, view.format, view.shape) == (3, "B", (3,))
        assert view.tobytes() == b"abc"


@exports_a_buffer
def test_a_memoryview_of_it_leaves_no_reference_behind() -> None:
    buf = Buffer(b"abc")
    memoryview(buf).release()
    before = sys.getrefcount(None)
    for _ in range(1000):
        memoryview(buf).release()
    assert sys.getrefcount(None) - before < 500  # other threads come and go


@exports_a_buffer
def test_struct_reads_from_it() -> None:
    buf = Buffer()
    buf.append_int16(7)
    buf.append_int32(9)
    assert struct.unpack_from(">hi", buf) == (7, 9)
    assert struct.unpack_from(">i", buf, 2) == (9,)


@exports_a_buffer
def test_a_socket_sends_it(stream: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = stream
    assert theirs.send(Buffer(b"abc")) == 3
    assert ours.recv(10) == b"abc"


@exports_a_buffer
def test_nobody_writes_into_it_through_the_buffer_protocol(stream: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = stream
    theirs.send(b"xyz")
    buf: Any = Buffer(b"abc")
    with pytest.raises((TypeError, BufferError)):
        ours.recv_into(buf)
    with pytest.raises((TypeError, BufferError)):
        struct.pack_into("B", buf, 0, 1)
    assert bytes(buf) == b"abc"


@exports_a_buffer
def test_a_memoryview_of_an_empty_buffer_is_empty() -> None:
    assert memoryview(Buffer(b"")).tobytes() == b""
    assert memoryview(Buffer()).nbytes == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.append(b"z" * 10),
        lambda b: b.append(b"z" * 5000),
        lambda b: b.prepend(b"zz"),
        lambda b: b.prepend(b"z" * 100),
        lambda b: b.retrieve(2),
        lambda b: (b.retrieve(2), b.prepend(b"zz")),
        lambda b: (b.retrieve(2), b.append(b"z" * 1020)),
        lambda b: (b.retrieve_all(), b.append(b"z" * 8)),
        lambda b: (b.retrieve_all_as_bytes(), b.append_int64(-1)),
        lambda b: (b.retrieve(6), b.append(b"z" * 8)),
        lambda b: (b.shrink(), b.append(b"z" * 8)),
        lambda b: (b.swap(Buffer(b"other")), b.append(b"z" * 8)),
        lambda b: (b.ensure_writable_bytes(2000), b.append(b"z" * 8)),
        lambda b: (b.retrieve_all(), b.give_back(), b.append(b"z" * 8)),
        lambda b: (b.read_int32(), b.prepend_int32(-1)),
    ],
)
def test_a_view_is_a_snapshot_that_no_change_reaches(change: Callable[[Buffer], object]) -> None:
    buf = Buffer()
    buf.append(b"abcdef")
    view = buf.peek()
    change(buf)
    assert bytes(view) == b"abcdef"


def test_a_view_outlives_its_buffer() -> None:
    buf = Buffer(b"abcdef")
    view = buf.peek(3)
    del buf
    gc.collect()
    assert bytes(view) == b"abc"


# --- memory ---


def test_ensure_writable_bytes_makes_room_once() -> None:
    buf = Buffer(b"abc")
    buf.ensure_writable_bytes(5000)
    assert buf.writable_bytes >= 5000
    capacity = buf.capacity
    buf.append(b"x" * 5000)
    assert buf.capacity == capacity
    assert bytes(buf) == b"abc" + b"x" * 5000


def test_negative_sizes_are_refused_with_their_value() -> None:
    buf = Buffer(b"abc")
    with pytest.raises(ValueError, match="-1"):
        buf.ensure_writable_bytes(-1)
    with pytest.raises(ValueError, match="-2"):
        buf.shrink(-2)
    assert bytes(buf) == b"abc"


def test_capacity_stays_in_proportion_to_the_content() -> None:
    buf = Buffer(0)
    for _ in range(1000):
        buf.append(b"x" * 100)
    assert buf.capacity <= 2 * 100_000 + 1024
    buf.retrieve(99_000)
    for _ in range(1000):
        buf.append(b"x" * 100)
        buf.retrieve(100)
    assert buf.capacity <= 2 * 100_000 + 1024


# --- read_fd ---


@pytest.fixture(params=["scratch", "own-memory"])
def scratch(request: pytest.FixtureRequest) -> bytearray | None:
    """Read with a scratch area and without."""
    return bytearray(SCRATCH) if request.param == "scratch" else None


def test_read_fd_appends_what_has_arrived(pipe: tuple[int, int], scratch: bytearray | None) -> None:
    buf = Buffer(0)
    os.write(pipe[1], b"abc")
    assert buf.read_fd(pipe[0], scratch) == 3
    assert bytes(buf) == b"abc"


def test_read_fd_appends_behind_what_is_there(pipe: tuple[int, int], scratch: bytearray | None) -> None:
    buf = Buffer(b"first ")
    os.write(pipe[1], b"second")
    assert buf.read_fd(pipe[0], scratch) == 6
    assert bytes(buf) == b"first second"


def test_read_fd_returns_0_at_the_end_of_the_stream(pipe: tuple[int, int], scratch: bytearray | None) -> None:
    os.close(pipe[1])
    for content in (b"", b"abc"):
        buf = Buffer(content)
        assert buf.read_fd(pipe[0], scratch) == 0
        assert bytes(buf) == content


def test_read_fd_returns_minus_eagain_if_nothing_is_there(pipe: tuple[int, int], scratch: bytearray | None) -> None:
    for content in (b"", b"abc"):
        buf = Buffer(content)
        assert buf.read_fd(pipe[0], scratch) == -errno.EAGAIN
        assert bytes(buf) == content


def test_read_fd_of_a_bad_descriptor_returns_minus_ebadf(scratch: bytearray | None) -> None:
    for content in (b"", b"abc"):
        buf = Buffer(content)
        assert buf.read_fd(-1, scratch) == -errno.EBADF
        assert bytes(buf) == content


@pytest.mark.parametrize("content", [b"", b"0123456789"], ids=["empty", "with-content"])
def test_read_fd_takes_more_than_the_writable_bytes_at_once(
    stream: tuple[socket.socket, socket.socket], scratch: bytearray | None, content: bytes
) -> None:
    ours, theirs = stream
    payload = os.urandom(50_000)
    theirs.sendall(payload)
    buf = Buffer(content)
    assert buf.read_fd(ours.fileno(), scratch) == 50_000
    assert bytes(buf) == content + payload


def test_read_fd_takes_64_kib_and_leaves_the_rest_to_the_next(
    stream: tuple[socket.socket, socket.socket], scratch: bytearray | None
) -> None:
    ours, theirs = stream
    payload = os.urandom(150_000)
    theirs.sendall(payload)
    buf = Buffer(0)
    received = bytearray()
    while len(received) < len(payload):
        count = buf.read_fd(ours.fileno(), scratch)
        assert count >= min(65536, len(payload) - len(received))
        assert len(buf) == count
        received += buf.retrieve_all_as_bytes()
        assert buf.give_back()
    assert received == payload


def test_read_fd_fills_the_writable_bytes_before_it_spills(stream: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = stream
    payload = os.urandom(100_000)
    theirs.sendall(payload)
    buf = Buffer(30_000)
    buf.append(b"x")
    assert buf.read_fd(ours.fileno(), bytearray(65536)) == 29_999 + 65536
    assert bytes(buf) == b"x" + payload[: 29_999 + 65536]


def test_read_fd_into_an_empty_buffer_borrows_the_scratch_area(pipe: tuple[int, int]) -> None:
    buf = Buffer(b"")
    os.write(pipe[1], b"abc")
    buf.read_fd(pipe[0], bytearray(SCRATCH))
    assert buf.capacity == 0
    assert bytes(buf) == b"abc"


def test_read_fd_twice_into_the_same_scratch_area_loses_nothing(stream: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = stream
    payload = os.urandom(100_000)
    scratch = bytearray(SCRATCH)
    buf = Buffer(b"")
    theirs.sendall(payload[:40_000])
    assert buf.read_fd(ours.fileno(), scratch) == 40_000
    theirs.sendall(payload[40_000:])
    count = buf.read_fd(ours.fileno(), scratch)
    assert count > 0
    assert bytes(buf) == payload[: 40_000 + count]


def test_read_fd_does_not_write_under_a_view_of_the_scratch_area(pipe: tuple[int, int]) -> None:
    scratch = bytearray(SCRATCH)
    buf = Buffer(b"")
    os.write(pipe[1], b"first")
    buf.read_fd(pipe[0], scratch)
    view = buf.peek()
    buf.retrieve_all()
    os.write(pipe[1], b"other")
    assert buf.read_fd(pipe[0], scratch) == 5
    assert bytes(buf) == b"other"
    assert bytes(view) == b"first"


CHANGES: dict[str, Callable[[Buffer], object]] = {
    "append": lambda buf: buf.append(bytes(2 * SCRATCH)),
    "append an int": lambda buf: buf.append_int64(1),
    "prepend": lambda buf: buf.prepend(b""),
    "shrink": lambda buf: buf.shrink(),
    "make room": lambda buf: buf.ensure_writable_bytes(2 * SCRATCH),
    "swap": lambda buf: buf.swap(Buffer(b"other")),
    "take out": lambda buf: buf.retrieve_all(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", ["read_fd", "take_from"])
def test_a_scratch_area_that_a_view_shows_is_not_given_back_wherever_the_content_is(
    pipe: tuple[int, int], change: str, how: str
) -> None:
    scratch = bytearray(SCRATCH)
    buf = Buffer(b"")
    if how == "read_fd":
        os.write(pipe[1], b"abcdef")
        buf.read_fd(pipe[0], scratch)
    else:
        scratch[:6] = b"abcdef"
        buf.take_from(scratch, 6)
    view = buf.peek()
    CHANGES[change](buf)
    assert buf.give_back() is False
    assert bytes(view) == b"abcdef"
    view.release()
    assert buf.give_back() is True


def test_take_from_borrows_if_empty_and_copies_behind_what_is_there() -> None:
    scratch = bytearray(b"abcdef")
    buf = Buffer(b"")
    buf.take_from(scratch, 4)
    assert bytes(buf) == b"abcd"
    assert buf.capacity == 0
    assert buf.give_back() is True
    buf.take_from(scratch, 6)
    scratch[:] = bytes(6)
    assert bytes(buf) == b"abcdabcdef"
    buf.take_from(bytearray(b"x" * 5000), 5000)
    assert bytes(buf) == b"abcdabcdef" + b"x" * 5000


@pytest.mark.parametrize("size", [0, 4, 8])
def test_read_fd_refuses_a_scratch_area_without_room(pipe: tuple[int, int], size: int) -> None:
    # 0 would look like the end of the stream. (Nothing is in the pipe, so nothing is written where no room is.)
    with pytest.raises(ValueError, match="scratch"):
        Buffer(b"").read_fd(pipe[0], bytearray(size))


# --- give_back ---


@pytest.fixture
def borrowed(pipe: tuple[int, int]) -> tuple[Buffer, bytearray]:
    """Return a buffer that holds b'abcdef' in a scratch area, and that area."""
    scratch = bytearray(SCRATCH)
    buf = Buffer(b"")
    os.write(pipe[1], b"abcdef")
    assert buf.read_fd(pipe[0], scratch) == 6
    return buf, scratch


def test_give_back_moves_what_is_unread_into_memory_of_its_own(borrowed: tuple[Buffer, bytearray]) -> None:
    buf, scratch = borrowed
    buf.retrieve(2)
    assert buf.give_back()
    scratch[:] = bytes(SCRATCH)
    assert bytes(buf) == b"cdef"
    assert buf.capacity > 0


def test_give_back_of_a_drained_buffer_leaves_it_without_memory(borrowed: tuple[Buffer, bytearray]) -> None:
    buf, _ = borrowed
    buf.retrieve_all()
    assert buf.give_back()
    assert buf.capacity == 0
    assert bytes(buf) == b""


def test_give_back_frees_what_a_burst_made_big() -> None:
    buf = Buffer()
    buf.append(b"x" * 1_000_000)
    buf.retrieve_all()
    assert buf.give_back()
    assert buf.capacity == 0


def test_give_back_keeps_memory_that_holds_content() -> None:
    buf = Buffer(b"abc")
    assert buf.give_back()
    assert bytes(buf) == b"abc"


def test_a_buffer_can_be_used_after_give_back(borrowed: tuple[Buffer, bytearray]) -> None:
    buf, scratch = borrowed
    buf.retrieve_all()
    buf.give_back()
    buf.append(b"new")
    buf.prepend(b"a ")
    assert bytes(buf) == b"a new"
    assert bytes(scratch[PREPEND : PREPEND + 6]) == b"abcdef"


@pytest.mark.parametrize("drained", [True, False])
def test_give_back_says_that_a_view_still_shows_the_scratch_area(
    borrowed: tuple[Buffer, bytearray], drained: bool
) -> None:
    buf, _ = borrowed
    view = buf.peek()
    if drained:
        buf.retrieve_all()
    assert not buf.give_back()
    assert bytes(view) == b"abcdef"


def test_give_back_of_a_view_let_go_of_says_the_area_is_free(borrowed: tuple[Buffer, bytearray]) -> None:
    buf, _ = borrowed
    buf.peek().release()
    buf.retrieve_all()
    assert buf.give_back()


def test_a_view_of_the_scratch_area_keeps_its_bytes_after_give_back(borrowed: tuple[Buffer, bytearray]) -> None:
    buf, _ = borrowed
    view = buf.peek()
    buf.give_back()
    buf.append(b"z" * 100)
    buf.prepend(b"z" * 100)
    assert bytes(view) == b"abcdef"


def test_what_is_appended_while_borrowing_is_kept(borrowed: tuple[Buffer, bytearray]) -> None:
    buf, scratch = borrowed
    buf.append(b"ghi")
    buf.retrieve_as_bytes(8)
    buf.append(b"jkl")
    assert buf.give_back()
    scratch[:] = bytes(SCRATCH)
    assert bytes(buf) == b"ijkl"


def test_append_after_drain_does_not_write_under_a_view_of_the_scratch_area(
    borrowed: tuple[Buffer, bytearray],
) -> None:
    buf, _ = borrowed
    view = buf.peek()
    buf.retrieve_all()
    buf.append(b"zzzzzz")
    buf.prepend(b"zz")
    assert bytes(view) == b"abcdef"
    assert bytes(buf) == b"zzzzzzzz"


def test_another_reader_of_the_scratch_area_does_not_disturb_the_first(pipe: tuple[int, int]) -> None:
    scratch = bytearray(SCRATCH)
    first, second = Buffer(b""), Buffer(b"")
    os.write(pipe[1], b"for the first")
    first.read_fd(pipe[0], scratch)
    assert first.give_back()
    os.write(pipe[1], b"for the second")
    second.read_fd(pipe[0], scratch)
    assert second.give_back()
    assert (bytes(first), bytes(second)) == (b"for the first", b"for the second")


# --- the object ---


def test_buffers_are_equal_by_content() -> None:
    one, other = Buffer(b"..abc"), Buffer(b"abc")
    assert one != other
    one.retrieve(2)
    assert one == other
    assert one == b"abc"
    assert one == bytearray(b"abc")
    assert one != b"abd"
    assert one != "abc"
    assert one != 5


def test_a_buffer_is_not_hashable() -> None:
    with pytest.raises(TypeError):
        hash(Buffer())


def test_an_empty_buffer_is_false() -> None:
    assert not Buffer()
    assert Buffer(b"x")


def test_repr_shows_size_and_beginning() -> None:
    assert repr(Buffer(b"abc\r\n")) == r"<Buffer 5 bytes: b'abc\r\n'>"
    assert repr(Buffer()) == "<Buffer 0 bytes: b''>"
    long = repr(Buffer(b"x" * 1000))
    assert long.startswith("<Buffer 1000 bytes: b'xxx")
    assert long.endswith("…>")
    assert len(long) < 80


def test_an_unknown_attribute_is_refused() -> None:
    buf: Any = Buffer()
    with pytest.raises(AttributeError):
        buf.contents = b""


# --- everything at once, against a model ---


class BufferMachine(RuleBasedStateMachine):
    """A buffer does whatever a plain bytearray does, and no view ever changes."""

    def __init__(self) -> None:
        super().__init__()
        self.buf = Buffer()
        self.model = b""
        self.scratch = bytearray(SCRATCH)
        self.views: list[tuple[memoryview, bytes]] = []
        self.ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def teardown(self) -> None:
        for fd in self.ends:
            os.close(fd)

    @initialize(size=st.sampled_from([0, 1, 7, 64, INITIAL]))
    def make(self, size: int) -> None:
        self.buf = Buffer(size)

    @rule(data=st.binary(max_size=40), kind=st.sampled_from([bytes, bytearray, memoryview, Buffer]))
    def append(self, data: bytes, kind: Callable[[bytes], Any]) -> None:
        self.buf.append(kind(data))
        self.model += data

    @rule(size=st.integers(0, 5000), fill=st.binary(min_size=1, max_size=1))
    def append_much(self, size: int, fill: bytes) -> None:
        self.buf.append(fill * size)
        self.model += fill * size

    @rule(data=st.binary(max_size=20))
    def prepend(self, data: bytes) -> None:
        self.buf.prepend(data)
        self.model = data + self.model

    @rule(value=st.integers(-(1 << 31), (1 << 31) - 1))
    def append_int(self, value: int) -> None:
        self.buf.append_int32(value)
        self.model += struct.pack(">i", value)

    @rule(value=st.integers(-(1 << 15), (1 << 15) - 1))
    def prepend_int(self, value: int) -> None:
        self.buf.prepend_int16(value)
        self.model = struct.pack(">h", value) + self.model

    @rule(part=st.floats(0, 1))
    def retrieve(self, part: float) -> None:
        count = int(part * len(self.model))
        self.buf.retrieve(count)
        self.model = self.model[count:]

    @rule(part=st.floats(0, 1))
    def retrieve_as_bytes(self, part: float) -> None:
        count = int(part * len(self.model))
        assert self.buf.retrieve_as_bytes(count) == self.model[:count]
        self.model = self.model[count:]

    @rule()
    def retrieve_all(self) -> None:
        assert self.buf.retrieve_all_as_bytes() == self.model
        self.model = b""

    @precondition(lambda self: len(self.model) >= 8)
    @rule()
    def read_int(self) -> None:
        assert self.buf.read_int64() == struct.unpack_from(">q", self.model)[0]
        self.model = self.model[8:]

    @rule(beyond=st.integers(1, 100))
    def too_much(self, beyond: int) -> None:
        with pytest.raises(ValueError, match="asked for"):
            self.buf.retrieve(len(self.model) + beyond)

    @rule(what=st.sampled_from(SOUGHT) | st.binary(max_size=2), part=st.just(0.0) | st.floats(0, 1))
    def find(self, what: bytes, part: float) -> None:
        start = int(part * len(self.model))
        assert self.buf.find(what, start) == self.model.find(what, start)

    @rule(delimiter=st.sampled_from(SOUGHT), limit=st.integers(0, 60))
    def take_delimited(self, delimiter: bytes, limit: int) -> None:
        expected = []
        while 0 <= (end := self.model.find(delimiter)) <= limit:
            expected.append(self.model[:end])
            self.model = self.model[end + len(delimiter) :]
        assert self.buf.take_delimited(delimiter, limit) == expected

    @rule(count=st.integers(0, 3000))
    def ensure(self, count: int) -> None:
        self.buf.ensure_writable_bytes(count)
        assert self.buf.writable_bytes >= count

    @rule(reserve=st.integers(0, 50))
    def shrink(self, reserve: int) -> None:
        self.buf.shrink(reserve)
        assert self.buf.writable_bytes == reserve

    @rule(other=st.binary(max_size=30))
    def swap(self, other: bytes) -> None:
        fresh = Buffer(other)
        self.buf.swap(fresh)
        assert bytes(fresh) == self.model
        self.model = other

    @rule(size=st.integers(0, 9000), fill=st.binary(min_size=1, max_size=1), lend=st.booleans())
    def read_fd(self, size: int, fill: bytes, lend: bool) -> None:
        self.give_back()  # the rule of borrowing: before the area is used again
        payload = fill * size
        os.write(self.ends[1], payload)
        count = self.buf.read_fd(self.ends[0], self.scratch if lend else None)
        assert count == (size or -errno.EAGAIN)
        self.model += payload

    @rule()
    def give_back(self) -> None:
        if self.buf.give_back():
            # Somebody else uses the area now.
            if not any(view.obj is self.scratch for view, _ in self.views):
                self.scratch[:] = b"\xaa" * len(self.scratch)
        else:
            self.scratch = bytearray(SCRATCH)

    @rule(part=st.floats(0, 1))
    def look(self, part: float) -> None:
        count = int(part * len(self.model))
        self.views.append((self.buf.peek(count), self.model[:count]))

    @precondition(lambda self: COMPILED or sys.version_info >= (3, 12))
    @rule()
    def view(self) -> None:
        buf: Any = self.buf
        self.views.append((memoryview(buf), self.model))

    @precondition(lambda self: self.views)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.views) - 1))
        self.views.pop(index)[0].release()

    @invariant()
    def same_content(self) -> None:
        assert len(self.buf) == self.buf.readable_bytes == len(self.model)
        assert bytes(self.buf) == self.model

    @invariant()
    def views_never_change(self) -> None:
        for view, content in self.views:
            assert view == content

    @invariant()
    def bounds_hold(self) -> None:
        assert self.buf.writable_bytes >= 0
        assert self.buf.prependable_bytes >= 0
        assert self.buf.capacity in (0, self.buf.prependable_bytes + len(self.buf) + self.buf.writable_bytes)


TestBufferAgainstModel = BufferMachine.TestCase
TestBufferAgainstModel.settings = settings(max_examples=120, stateful_step_count=40)
