"""The small programs with the client that their docstrings name: nc, as people have it."""

from __future__ import annotations

import contextlib
import datetime
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from conftest import PATIENCE_S, installed
from programs import Program, running

THREADS = pytest.mark.parametrize("threads", ["0", "2"])


def nc(server: Program, data: bytes, *options: str) -> bytes:
    """Return what nc prints that gets *data* as its input."""
    command = [installed("nc"), "-N", *options, "127.0.0.1", str(server.port)]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, timeout=PATIENCE_S, check=True).stdout


class Typist:
    """An nc that somebody sits before."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._keyboard: IO[bytes] = process.stdin
        self.screen: IO[bytes] = process.stdout

    def type(self, line: bytes) -> None:
        """Type a line."""
        self._keyboard.write(line)
        self._keyboard.flush()


@contextlib.contextmanager
def typist(server: Program) -> Iterator[Typist]:
    command = [installed("nc"), "127.0.0.1", str(server.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Typist(process)
        finally:
            process.kill()


@THREADS
def test_echo_gives_back_all_that_nc_sends(threads: str) -> None:
    payload = os.urandom(3_000_000)
    with running("echo.py", "--threads", threads) as server:
        assert nc(server, payload) == payload
        server.wait_for_log("is down")


@THREADS
def test_daytime_tells_nc_the_date(threads: str) -> None:
    with running("daytime.py", "--threads", threads) as server:
        date = nc(server, b"").decode().rpartition("-")[0]
    told = datetime.datetime.strptime(date, "%A, %B %d, %Y %H:%M:%S")
    assert abs(told.timestamp() - time.time()) < PATIENCE_S


@THREADS
def test_time_tells_nc_the_seconds(threads: str) -> None:
    with running("time_server.py", "--threads", threads) as server:
        (since_1900,) = struct.unpack(">I", nc(server, b""))
    assert abs((since_1900 - 2_208_988_800) - time.time()) % (1 << 32) < PATIENCE_S


@THREADS
def test_discard_takes_all_and_says_nothing(threads: str) -> None:
    with running("discard.py", "--interval", "0.05", "--threads", threads) as server:
        assert nc(server, bytes(3_000_000)) == b""
        server.wait_for_log(r"[\d.]+ MiB/s, \d+ messages/s of \d+ bytes")


@THREADS
def test_chargen_sends_lines_for_as_long_as_nc_is_there(threads: str) -> None:
    with running("chargen.py", "--threads", threads) as server:
        with typist(server) as reader:
            lines = [reader.screen.readline() for _ in range(20_000)]
        server.wait_for_log("is down")
    ring = bytes(range(32, 127)) * 2
    assert lines == [ring[at % 95 : at % 95 + 72] + b"\r\n" for at in range(20_000)]


@THREADS
def test_idle_echo_gives_back_what_nc_sends_asks_who_is_silent_and_hangs_up(threads: str) -> None:
    payload = os.urandom(100_000)
    with running("idle_echo.py", "--threads", threads) as server:
        assert nc(server, payload) == payload
    with running("idle_echo.py", "--idle", "0.2", "--threads", threads) as server, typist(server) as user:
        assert user.screen.readline() == b"are you there?\n"
        server.wait_for_log("nothing received for 0.2 s")
        server.wait_for_log("is down")


@THREADS
def test_one_nc_too_many_is_told_so(threads: str) -> None:
    with (
        running("max_connections.py", "--most", "2", "--threads", threads) as server,
        typist(server) as first,
        typist(server) as second,
    ):
        for user in (first, second):
            user.type(b"hello\n")
            assert user.screen.readline() == b"hello\n"
        assert nc(server, b"") == b"full, come back later\r\n"
        server.wait_for_log("full: .* is turned away")


@pytest.mark.parametrize(
    ("step", "answer"),
    [(3, b""), (4, b""), (5, b"No such user\r\n"), (6, b"No such user\r\n"), (7, b"Ann is at lunch\r\n")],
)
def test_every_step_of_finger_answers_nc(step: int, answer: bytes) -> None:
    users = ("--user", "ann:Ann is at lunch") if step == 7 else ()
    with running(f"finger/finger0{step}.py", *users) as server:
        assert nc(server, b"ann\n", "-C") == answer
        server.wait_for_log("asks b'ann'" if step > 3 else "is up")


def test_the_second_step_of_finger_stays_until_nc_leaves() -> None:
    with running("finger/finger02.py") as server:
        with typist(server) as user:
            user.type(b"ann\n")
            server.wait_for_log("UP")
        server.wait_for_log("DOWN")


def test_the_ping_pong_server_gives_back_what_nc_sends() -> None:
    payload = os.urandom(100_000)
    with running("pingpong/server.py", "--threads", "1") as server:
        assert nc(server, payload) == payload


def test_nc_can_be_a_sender_of_words(tmp_path: Path) -> None:
    out = tmp_path / "totals"
    with Program("wordcount/receiver.py", "--port", "0", "--out", str(out)) as receiver:
        assert nc(receiver, b"two\t2\none\t1\ntwo\t1\n\\end\n", "-C") == b""
        assert receiver.wait() == 0, receiver.err
    assert out.read_bytes() == b"one\t1\ntwo\t3\n"
