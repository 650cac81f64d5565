"""The three file servers: nc and plain sockets fetch files from them, and their memory and descriptors are watched."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from conftest import IS_FREE_THREADED, PATIENCE_S, eventually, installed, receive_all, receive_exactly, reset
from programs import Program, running

PROGRAMS = ["filetransfer/download.py", "filetransfer/download2.py", "filetransfer/download3.py"]
FRUGAL = PROGRAMS[1:]
BIG_BYTES = 200 << 20
FRUGAL_BYTES = 32 << 20  # far less than a big file, far more than a few pieces


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """Return a file of some megabytes, and a bit more than whole pieces."""
    path = tmp_path / "song"
    path.write_bytes(os.urandom(5_000_001))
    return path


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """Return a file that takes little room on the disk and would take much in memory."""
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(BIG_BYTES)
        for offset in range(0, BIG_BYTES, 10 << 20):
            file.seek(offset + 12_345)
            file.write(os.urandom(1000))
    return path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_stream(sock: socket.socket, digest: hashlib._Hash | None = None) -> str:
    """Receive until the stream ends, keeping nothing."""
    digest = digest or hashlib.sha256()
    while chunk := sock.recv(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def descriptor_count(server: Program) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


@pytest.mark.parametrize("threads", ["0", "2"])
@pytest.mark.parametrize("path", PROGRAMS)
def test_nc_gets_the_whole_file_and_then_the_end(path: str, threads: str, song: Path) -> None:
    nc = installed("nc")
    with running(path, str(song), "--threads", threads) as server:
        for _ in range(3):
            done = subprocess.run(
                [nc, "-N", "127.0.0.1", str(server.port)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=PATIENCE_S,
                check=True,
            )
            assert hashlib.sha256(done.stdout).hexdigest() == sha256_of(song)


@pytest.mark.parametrize("path", PROGRAMS)
def test_without_an_argument_a_server_sends_itself(path: str) -> None:
    with running(path) as server, server.connect() as peer:
        assert b"What it teaches: " in receive_all(peer)


@pytest.mark.parametrize("path", PROGRAMS)
def test_an_empty_file_is_the_end_at_once(path: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    with running(path, str(empty)) as server:
        before = descriptor_count(server)
        for _ in range(3):
            with server.connect() as peer:
                assert receive_all(peer) == b""
        eventually(lambda: descriptor_count(server) == before)


@pytest.mark.parametrize("path", PROGRAMS)
def test_a_file_that_is_not_there_any_more_ends_the_connection_and_is_logged(path: str, song: Path) -> None:
    with running(path, str(song)) as server:
        before = descriptor_count(server)
        song.unlink()
        with server.connect() as peer:
            assert receive_all(peer) == b""
        server.wait_for_log("No such file")
        song.mkdir()
        with server.connect() as peer:
            assert receive_all(peer) == b""
        server.wait_for_log("Is a directory|is no ordinary file")
        eventually(lambda: descriptor_count(server) == before)


@pytest.mark.measures_memory
def test_the_simple_one_refuses_what_is_too_big_for_it(big: Path) -> None:
    with running(PROGRAMS[0], str(big)) as server, server.connect() as peer:
        assert receive_all(peer) == b""
        server.wait_for_log("not sent")
        assert server.peak_bytes < BIG_BYTES


@pytest.mark.parametrize("threads", ["0", "2"])
@pytest.mark.parametrize("path", PROGRAMS)
def test_many_clients_at_once_get_the_same(path: str, threads: str, song: Path) -> None:
    with running(path, str(song), "--threads", threads) as server, contextlib.ExitStack() as stack:
        before = descriptor_count(server)
        peers = [stack.enter_context(server.connect()) for _ in range(20)]
        results: list[str] = []
        threads_ = [threading.Thread(target=lambda p=p: results.append(sha256_of_stream(p))) for p in peers]
        for thread in threads_:
            thread.start()
        for thread in threads_:
            thread.join(PATIENCE_S)
        assert results == [sha256_of(song)] * 20
        stack.close()
        eventually(lambda: descriptor_count(server) == before)


@pytest.mark.parametrize("path", PROGRAMS)
def test_a_client_that_leaves_in_the_middle_leaves_no_descriptor(path: str, song: Path) -> None:
    with running(path, str(song)) as server:
        before = descriptor_count(server)
        for number in range(30):
            peer = server.connect()
            receive_exactly(peer, 1000)
            if number % 2:
                reset(peer)
            else:
                peer.close()
        eventually(lambda: descriptor_count(server) == before, "descriptors were left")
        with server.connect() as peer:
            assert sha256_of_stream(peer) == sha256_of(song)


@pytest.mark.measures_memory
@pytest.mark.parametrize("path", FRUGAL)
def test_memory_stays_flat_however_big_the_file_and_however_slow_the_client(path: str, big: Path) -> None:
    with running(path, str(big)) as server:
        before = server.peak_bytes
        with server.connect() as slow:
            digest = hashlib.sha256(receive_exactly(slow, 100_000))
            with server.connect() as fast:
                assert sha256_of_stream(fast) == sha256_of(big)
            assert server.peak_bytes - before < FRUGAL_BYTES
            assert sha256_of_stream(slow, digest) == sha256_of(big)
        assert server.peak_bytes - before < FRUGAL_BYTES


@pytest.mark.measures_memory
def test_the_simple_one_keeps_the_whole_file_for_each_client(tmp_path: Path) -> None:
    size, count = 30 << 20, 3
    path = tmp_path / "film"
    path.write_bytes(os.urandom(1 << 20) * 30)
    with running(PROGRAMS[0], str(path)) as server, contextlib.ExitStack() as stack:
        before = server.peak_bytes
        peers = [stack.enter_context(server.connect()) for _ in range(count)]
        for peer in peers:
            receive_exactly(peer, 1)
        assert server.peak_bytes - before > count * size * 3 // 4  # the kernel holds the rest
        for peer in peers:
            receive_exactly(peer, size - 1)
            assert peer.recv(1) == b""
        copies = 2 * count if IS_FREE_THREADED else count  # whose allocator grows a block by copying it
        assert server.peak_bytes - before < (copies + 2) * size


@pytest.mark.parametrize("path", PROGRAMS)
def test_what_a_client_says_does_not_matter(path: str, song: Path) -> None:
    with running(path, str(song)) as server, server.connect() as peer:
        peer.sendall(bytes(100_000))
        peer.shutdown(socket.SHUT_WR)
        assert sha256_of_stream(peer) == sha256_of(song)
