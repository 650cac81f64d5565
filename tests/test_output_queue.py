"""OutputQueue: every byte once and in order, however little each write takes."""

from __future__ import annotations

import errno
import gc
import os
import random
import socket
import sys
from collections.abc import Iterator

import pytest

from pymuduo.output_queue import OutputQueue


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return a non-blocking pair of sockets whose send buffer is as small as the kernel allows."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    for end in (ours, theirs):
        end.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def drain(queue: OutputQueue, ours: socket.socket, theirs: socket.socket) -> tuple[bytes, int]:
    """Write and receive in turn until the queue is empty: what arrived, and how many writes it took."""
    received = bytearray()
    writes = 0
    while len(queue):
        before = queue.size
        count = queue.write_to(ours.fileno())
        assert count > 0 or count == -errno.EAGAIN
        assert queue.size == before - max(count, 0)
        writes += count > 0
        received += take(theirs)
    received += take(theirs)
    return bytes(received), writes


def take(sock: socket.socket) -> bytes:
    """Return what has arrived."""
    received = bytearray()
    try:
        while chunk := sock.recv(1 << 20):
            received += chunk
    except BlockingIOError:
        pass
    return bytes(received)


def test_a_new_queue_is_empty() -> None:
    queue = OutputQueue()
    assert len(queue) == queue.size == 0
    assert not queue


def test_size_counts_what_is_unsent() -> None:
    queue = OutputQueue()
    queue.append(b"abc")
    queue.append(b"de")
    assert len(queue) == queue.size == 5


def test_one_write_takes_all_that_fits(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    queue = OutputQueue()
    for chunk in (b"one ", b"two ", b"three"):
        queue.append(chunk)
    assert queue.write_to(ours.fileno()) == 13
    assert theirs.recv(100) == b"one two three"
    assert queue.size == 0


@pytest.mark.parametrize(
    ("count", "size"),
    [
        (1, 1),
        (1, 1_000_000),
        (64, 1),
        (65, 1),
        (999, 1),
        (5000, 7),
        (200, 2048),
        (200, 2049),
        (63, 40_000),
        (9, 300_000),
    ],
)
def test_every_byte_arrives_once_and_in_order(ends: tuple[socket.socket, socket.socket], count: int, size: int) -> None:
    chunks = [random.Random(i).randbytes(size) for i in range(count)]
    queue = OutputQueue()
    for chunk in chunks:
        queue.append(chunk)
    received, _ = drain(queue, *ends)
    assert received == b"".join(chunks)


@pytest.mark.parametrize("seed", range(8))
def test_chunks_of_all_sizes_arrive_in_order_with_appends_between_the_writes(
    ends: tuple[socket.socket, socket.socket], seed: int
) -> None:
    ours, theirs = ends
    dice = random.Random(seed)
    queue = OutputQueue()
    expected, received = bytearray(), bytearray()
    for _ in range(300):
        for _ in range(dice.choice([0, 1, 5, 80])):
            chunk = dice.randbytes(dice.choice([1, 10, 100, 5000]))
            queue.append(chunk)
            expected += chunk
        if queue.size:
            queue.write_to(ours.fileno())
        received += take(theirs) if dice.random() < 0.7 else b""
        assert len(expected) >= len(received) + queue.size
    received += take(theirs)
    received += drain(queue, ours, theirs)[0]
    assert received == expected


def test_many_small_chunks_share_a_system_call(ends: tuple[socket.socket, socket.socket]) -> None:
    queue = OutputQueue()
    for _ in range(640):
        queue.append(b"x")
    received, writes = drain(queue, *ends)
    assert received == b"x" * 640
    assert writes == 1


def test_a_full_socket_is_minus_eagain_and_changes_nothing(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    queue = OutputQueue()
    queue.append(b"x" * 1_000_000)
    sent = 0
    while (count := queue.write_to(ours.fileno())) > 0:
        sent += count
    assert count == -errno.EAGAIN
    assert queue.size == 1_000_000 - sent
    received = take(theirs) + drain(queue, ours, theirs)[0]
    assert received == b"x" * 1_000_000


@pytest.mark.parametrize("chunks", [[b"x"], [b"x", b"y"], [b"x" * 9000, b"y" * 9000], [b"x" * 90_000, b"y"]])
def test_a_peer_that_is_gone_is_minus_epipe_not_a_signal(
    ends: tuple[socket.socket, socket.socket], chunks: list[bytes]
) -> None:
    ours, theirs = ends
    theirs.close()
    queue = OutputQueue()
    for chunk in chunks:
        queue.append(chunk)
    assert queue.write_to(ours.fileno()) == -errno.EPIPE
    assert queue.size == sum(map(len, chunks))


@pytest.mark.parametrize("count", [1, 3])
def test_a_bad_descriptor_is_minus_ebadf(count: int) -> None:
    queue = OutputQueue()
    for _ in range(count):
        queue.append(b"x")
    assert queue.write_to(-1) == -errno.EBADF
    assert queue.size == count


def test_large_chunks_are_shared_not_copied() -> None:
    chunk = bytes(2049)
    before = sys.getrefcount(chunk)
    queues = [OutputQueue() for _ in range(100)]
    for queue in queues:
        queue.append(chunk)
    assert sys.getrefcount(chunk) == before + 100


def test_a_sent_chunk_is_let_go_of_although_others_wait(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = ends
    first = b"first" * 600
    before = sys.getrefcount(first)
    queue = OutputQueue()
    queue.append(first)
    queue.append(b"x" * 1_000_000)
    assert 3000 < queue.write_to(ours.fileno()) < 1_003_000
    assert sys.getrefcount(first) == before


def test_drained_and_cleared_queues_let_go_of_everything(ends: tuple[socket.socket, socket.socket]) -> None:
    chunk = b"chunk" * 1000
    before = sys.getrefcount(chunk)
    queue = OutputQueue()
    for _ in range(200):
        queue.append(chunk)
    drain(queue, *ends)
    assert sys.getrefcount(chunk) == before
    for _ in range(200):
        queue.append(chunk)
    queue.clear()
    assert queue.size == 0
    assert sys.getrefcount(chunk) == before


def test_a_queue_that_is_never_empty_does_not_grow(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    queue = OutputQueue()
    queue.append(b"x" * 100)
    for _ in range(5000):
        queue.append(b"x" * 100)
        queue.append(b"x" * 100)
        take(theirs)
        while queue.size > 100_000:
            if queue.write_to(ours.fileno()) < 0:
                take(theirs)
    # The list of chunks can't be longer than a few times what is unsent.
    assert sum(sys.getsizeof(part) for part in _lists_of(queue)) < 64 * 1024


def _lists_of(queue: OutputQueue) -> list[object]:
    return [part for part in gc.get_referents(queue) if isinstance(part, list)]


def test_clear_in_the_middle_of_a_chunk_forgets_it(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    queue = OutputQueue()
    queue.append(b"x" * 1_000_000)
    queue.write_to(ours.fileno())
    queue.clear()
    take(theirs)
    queue.append(b"new")
    assert drain(queue, ours, theirs)[0] == b"new"


def test_of_a_peer_that_does_not_read_little_is_copied() -> None:
    """The rest is shared: a broadcast to a thousand slow readers costs a pointer each."""
    queue = OutputQueue()
    chunk = os.urandom(1000)  # no constant, whose references nobody may count
    before = sys.getrefcount(chunk)
    for _ in range(100):
        queue.append(chunk)
    assert sys.getrefcount(chunk) == before + 100 - 16384 // 1000
    assert queue.size == 100_000


def test_repr_tells_bytes() -> None:
    queue = OutputQueue()
    queue.append(b"abc")
    queue.append(b"d")
    assert repr(queue) == "<OutputQueue 4 bytes>"
