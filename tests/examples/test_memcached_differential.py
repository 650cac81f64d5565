"""The memcached example and the real memcached are asked the same, and must answer the same to the last byte."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import PATIENCE_S, eventually, installed, receive_all
from programs import running
from targets import nobody

LONG, LONGEST = b"k" * 251, b"k" * 250
MARKER, MARKED = b"delete a b\r\n", b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n"
VERSION = re.compile(rb"VERSION \S+\r\n")
WITH_CAS = re.compile(rb"(VALUE (\S+) [0-9]+ [0-9]+ )([0-9]+)\r\n")
LIMIT = (1 << 20) - 60  # of a value, with a key of one byte and no flags


@contextlib.contextmanager
def running_memcached() -> Iterator[int]:
    """Run the real memcached on a free port of the loopback for the length of a block, which gets the port."""
    program = installed("memcached")
    port = nobody().port
    user = ["-u", "nobody"] if os.getuid() == 0 else []
    process = subprocess.Popen(
        [program, "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-t", "1", "-o", "no_lru_maintainer", *user]
    )
    try:
        eventually(lambda: process.poll() is not None or can_connect(port), "memcached does not listen")
        assert process.poll() is None
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def can_connect(port: int) -> bool:
    """Return whether somebody listens there."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, int]]:
    """Return the ports of our server and of the real one."""
    with running_memcached() as real, running("memcached/server.py") as ours:
        yield ours.port, real


def ask(port: int, requests: bytes) -> bytes:
    """Return all that is answered to requests on a connection of their own, on an empty cache."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as peer:
        peer.sendall(b"flush_all noreply\r\n" + requests)
        peer.shutdown(socket.SHUT_WR)
        return normal(VERSION.sub(b"VERSION x\r\n", receive_all(peer)), {})


def normal(answer: bytes, seen: dict[bytes, bytes]) -> bytes:
    """Return an answer in which cas numbers are replaced by the order in which they were seen first."""
    return WITH_CAS.sub(lambda m: m[1] + seen.setdefault(m[3], b"%d" % len(seen)) + b"\r\n", answer)


def put(
    command: bytes, key: bytes, value: bytes, flags: bytes = b"0", exptime: bytes = b"0", more: bytes = b""
) -> bytes:
    """Return a storage command."""
    return b"%b %b %b %b %d%b\r\n%b\r\n" % (command, key, flags, exptime, len(value), more, value)


SAME = [
    b"",
    b"\r\n\n\r\r\n  \r\n",
    b"nonsense\r\nGET a\r\ng\r\ngetx a\r\nsett a 0 0 1\r\n",
    b"get\r\ngets\r\ngat\r\ngats\r\ngat 10\r\ngats 0\r\ngat x a\r\ngat x\r\n",
    b"get " + LONG + b"\r\nget " + LONGEST + b"\r\n",
    b"get a " + LONG + b" b\r\n",
    b"gat 0 a " + LONG + b"\r\n",
    b"get a\n  get   a  b \r\nversion\nversion x y\r\n",
    put(b"set", b"a", b"1") + b"get a\r\nget b a b a\r\ngets a b\r\nget a\nget " + b" ".join([b"a"] * 100) + b"\r\n",
    put(b"set", b"a", b"") + put(b"set", b"b", b"\r\n\0\xff \r\nget a\r\n") + b"get a b\r\n",
    put(b"set", LONGEST, b"1") + b"get " + LONGEST + b"\r\n",
    put(b"set", b"\xff\x80", b"1", b"4294967295") + b"get \xff\x80\r\n",
    b"set a 007 0 0003\r\nabc\r\nget a\r\n"
    b"set a 0 00 3 noreply\r\nabd\r\nget a\r\nset a 0 0 00000000000003\r\nabe\r\nget a\r\n",
    put(b"set", b"a", b"1", more=b" noreply") + put(b"set", b"b", b"2", more=b" norepl") + b"get a b\r\n",
    put(b"set", b"a", b"noreply") + put(b"set", b"b", b"noreply", more=b" noreply") + b"get a b\r\n",
    put(b"add", b"a", b"1", b"5") + put(b"add", b"a", b"2") + put(b"replace", b"a", b"3") + put(b"replace", b"b", b"4"),
    put(b"set", b"a", b"1", b"5") + put(b"append", b"a", b"2", b"7") + put(b"prepend", b"a", b"0") + b"get a\r\n",
    put(b"append", b"a", b"2") + put(b"prepend", b"a", b"0") + put(b"append", b"a", b"2", more=b" noreply"),
    put(b"cas", b"a", b"1", more=b" 1") + put(b"set", b"a", b"1") + put(b"cas", b"a", b"2", more=b" 0") + b"get a\r\n",
    put(b"cas", b"a", b"1", more=b" 1 noreply") + put(b"cas", b"a", b"1", more=b" 18446744073709551615"),
    b"set a 0 0 2\r\nabc\r\nget a\r\n" + b"set a 0 0 2 noreply\r\nabc\r\nget a\r\nset a 0 0 0\r\n\n\r\nget a\r\n",
    b"set a 0 0 2\r\nab\r\r\nversion\r\nset a 0 0 5\r\nab\r\n\nversion\r\n",
    b"set\r\nset a\r\nset a 0\r\nset a 0 0\r\ncas a 0 0\r\n"
    b"set a 0 0 x\r\nset a 0 0 -1\r\nset a 0 0 1x\r\nset a 0 0 noreply\r\n",
    b"set a 0 0 2147483646\r\nset a 0 0 2147483647\r\nget a\r\n",
    put(b"set", b"n", b"9")
    + b"incr n 1\r\ndecr n 1\r\nget n\r\nincr n 18446744073709551615\r\nget n\r\ndecr n 100\r\n",
    put(b"set", b"n", b"1", b"77")
    + b"gets n\r\nincr n 98\r\nget n\r\nincr n 01\r\nget n\r\ndecr n 1 noreply\r\nget n\r\n",
    put(b"set", b"n", b"18446744073709551615") + b"incr n 1\r\nget n\r\nincr n 18446744073709551615\r\n",
    put(b"set", b"n", b"18446744073709551616")
    + b"incr n 1\r\n"
    + put(b"set", b"n", b"99999999999999999999")
    + b"decr n 1\r\n",
    b"".join(
        put(b"set", b"n", value) + b"incr n 1\r\nget n\r\n"
        for value in (
            b"",
            b" 5",
            b"5 ",
            b"5x",
            b" 5 x",
            b"-5",
            b"-0",
            b"+5",
            b"++5",
            b"05",
            b"5\r\n",
            b"\t5\n",
            b"1e3",
        )
    ),
    b"incr\r\nincr n\r\nincr n 1 x\r\nincr n 1 x y\r\nincr n x\r\n"
    b"incr n -1\r\nincr n 18446744073709551616\r\ndecr n x\r\n",
    b"incr n noreply\r\nincr noreply noreply\r\nincr n x noreply\r\nincr " + LONG + b" 1\r\nincr " + LONG + b" x\r\n",
    put(b"set", b"a", b"1")
    + b"delete a\r\ndelete a\r\ndelete a 0\r\ndelete a 1\r\ndelete a 0 noreply\r\ndelete a noreply\r\n",
    b"delete\r\ndelete a x noreply\r\ndelete a 0 x\r\ndelete a b c d\r\ndelete " + LONG + b"\r\n",
    put(b"set", b"noreply", b"1") + b"delete noreply\r\nget noreply\r\ntouch noreply 0\r\n",
    put(b"set", b"a", b"1")
    + b"touch\r\ntouch a\r\ntouch a x\r\ntouch a 0\r\ntouch a 0 x\r\ntouch a 0 noreply\r\ntouch b 0\r\n",
    put(b"set", b"a", b"1") + b"touch a noreply\r\ntouch a 0 1 2\r\ntouch " + LONG + b" 0\r\ntouch a -1\r\nget a\r\n",
    put(b"set", b"a", b"1") + b"gat 100 a b\r\ngats 0 a\r\ngat -1 a\r\nget a\r\n",
    b"".join(
        put(b"set", b"a", b"1", exptime=t) + b"get a\r\n" for t in (b"-1", b"2592001", b"2592000", b"4000000000"[:9])
    ),
    put(b"set", b"a", b"1") + put(b"set", b"a", b"2", exptime=b"-1") + put(b"add", b"a", b"3") + b"get a\r\n",
    put(b"set", b"a", b"1")
    + b"flush_all\r\nget a\r\nflush_all 0\r\nflush_all x\r\nflush_all -5\r\nflush_all noreply\r\n",
    b"flush_all 0 noreply\r\nflush_all 0 x\r\nflush_all 1 2 3\r\nflush_all x noreply\r\n",
    put(b"set", b"a", b"1") + b"flush_all 100\r\nget a\r\n" + put(b"set", b"b", b"1") + b"get a b\r\n",
    b"verbosity\r\nverbosity 0\r\nverbosity x\r\nverbosity 0 noreply\r\n"
    b"verbosity 0 1 2\r\nverbosity 0 y\r\nverbosity noreply\r\n",
    b"stats x\r\nstats reset\r\nstats noreply\r\n",
    b"version\r\nquit\r\nversion\r\n",
    b"version\r\nquit noreply\r\n" + put(b"set", b"a", b"1"),
    put(b"set", b"a", b"x" * LIMIT) + b"get a\r\n",
    put(b"set", b"a", b"x" * (LIMIT + 1)) + b"get a\r\n",
    put(b"set", b"a", b"x" * (LIMIT - 4), b"1") + put(b"set", b"a", b"x" * (LIMIT - 3), b"1") + b"get a\r\n",
    put(b"set", b"a", b"1") + put(b"set", b"a", b"x" * 2_000_000) + b"get a\r\nversion\r\n",
    put(b"set", b"a", b"1") + put(b"add", b"a", b"x" * 2_000_000) + b"get a\r\n",
    put(b"set", b"a", b"1") + put(b"set", b"a", b"x" * 2_000_000, more=b" noreply") + b"get a\r\nversion\r\n",
    put(b"cas", b"a", b"x" * 1_500_000, more=b" 5") + b"version\r\n" + put(b"replace", b"a", b"\n" * 1_500_000),
    put(b"set", b"a", b"x" * 600_000)
    + put(b"append", b"a", b"y" * 600_000)
    + put(b"prepend", b"a", b"y" * 500_000)
    + b"get a\r\n",
    b"set a 0 0 3",
    b"set a 0 0 3\r\nab",
    b"get a",
]
"""Requests on one connection, to which the answers must be the same."""

BAD_LINE, NEXT = b"CLIENT_ERROR bad command line format\r\n", b"VERSION x\r\n"
DIFFERENT = [
    # The block of a storage command whose line is wrong is dropped, not executed.
    (put(b"set", LONG, b"version"), BAD_LINE, BAD_LINE + NEXT),
    (put(b"set", b"a", b"version", b"x"), BAD_LINE, BAD_LINE + NEXT),
    (put(b"set", b"a", b"version", b"-1"), BAD_LINE, BAD_LINE + NEXT),
    (put(b"set", b"a", b"version", exptime=b"1x"), BAD_LINE, BAD_LINE + NEXT),
    (put(b"cas", b"a", b"version", more=b" x"), BAD_LINE, BAD_LINE + NEXT),
    (put(b"cas", b"a", b"version", more=b" -1"), BAD_LINE, BAD_LINE + NEXT),
    (put(b"set", b"a", b"version", more=b" 2 3"), b"ERROR\r\n", b"ERROR\r\n" + NEXT),
    (put(b"cas", b"a", b"version"), b"ERROR\r\n", b"ERROR\r\n" + NEXT),
    (put(b"set", LONG, b"version", more=b" noreply"), b"", NEXT),
    (put(b"cas", b"a", b"version", more=b" x noreply"), b"", NEXT),
    # A block that does not end where it should, behind a line whose last word could be it.
    (b"set a 0 0 1 x\r\nabc\r\n", b"STORED\r\nERROR\r\n", b"CLIENT_ERROR bad data chunk\r\nERROR\r\n"),
    (b"add a 0 0 7 noreply\r\nabcdefghi\r\n", b"STORED\r\nERROR\r\n", b"ERROR\r\n"),
    # A mistake takes no earlier answer away.
    (b"version\r\nget " + LONG + b"\r\n", NEXT + BAD_LINE, BAD_LINE),
]
"""Requests, our answer, and that of the real memcached."""


@pytest.mark.parametrize("requests", SAME)
def test_what_is_asked_is_answered_as_memcached_does(ports: tuple[int, int], requests: bytes) -> None:
    ours, real = (ask(port, requests) for port in ports)
    assert ours == real


@pytest.mark.parametrize(("requests", "ours", "real"), DIFFERENT)
def test_where_it_differs_it_is_on_purpose(ports: tuple[int, int], requests: bytes, ours: bytes, real: bytes) -> None:
    assert ask(ports[0], requests) == ours
    assert ask(ports[1], requests) == real


@pytest.mark.parametrize("key", [b"a\x01b", b"a\tb", b"a\x7f", b"a\rb"])
def test_keys_have_no_control_characters(ports: tuple[int, int], key: bytes) -> None:
    requests = put(b"set", key, b"1") + put(b"add", key, b"1") + put(b"set", key, b"1", more=b" noreply")
    assert (
        ask(ports[0], requests + b"get " + key + b"\r\n")
        == b"CLIENT_ERROR bad command line format\r\n" * 2 + b"END\r\n"
    )


def test_any_cut_of_a_stream_is_answered_the_same(ports: tuple[int, int]) -> None:
    requests = b"".join(request for request in SAME[:40] if b"quit" not in request and len(request) < 2000)
    whole = ask(ports[0], requests)
    with socket.create_connection(("127.0.0.1", ports[0]), PATIENCE_S) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.sendall(b"flush_all noreply\r\n")
        for at in range(0, len(requests), 7):
            peer.sendall(requests[at : at + 7])
        peer.shutdown(socket.SHUT_WR)
        assert normal(VERSION.sub(b"VERSION x\r\n", receive_all(peer)), {}) == whole


KEY = st.sampled_from([b"a", b"b", b"c"])
KEYS = st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), min_size=1, max_size=5).map(b" ".join)
VALUE = st.sampled_from(
    [b"", b"0", b"1", b"9", b"10", b"99", b"18446744073709551615", b" 7", b"7 ", b"abc", b"1\r\n", b"\0"]
)
FLAGS = st.sampled_from([b"0", b"0", b"1", b"65536", b"4294967295", b"00"])
EXPTIME = st.sampled_from([b"0", b"0", b"0", b"100", b"-1", b"2592001", b"%d" % (time.time() + 1000)])
QUIET = st.sampled_from([b"", b"", b"", b" noreply", b" x"])
DELTA = st.sampled_from([b"0", b"1", b"5", b"90", b"18446744073709551615", b"x", b"-1", b"noreply"])
CAS = st.sampled_from([b" <last>", b" <last>", b" <first>", b" 0"])
COMMAND = st.one_of(
    st.builds(lambda c, k: c + b" " + k, st.sampled_from([b"get", b"gets"]), KEYS).map(lambda line: line + b"\r\n"),
    st.builds(lambda c, t, k: b"%b %b %b\r\n" % (c, t, k), st.sampled_from([b"gat", b"gats"]), EXPTIME, KEYS),
    st.builds(
        put, st.sampled_from([b"set", b"add", b"replace", b"append", b"prepend"]), KEY, VALUE, FLAGS, EXPTIME, QUIET
    ),
    st.builds(put, st.just(b"set"), KEY, VALUE, FLAGS),
    st.builds(lambda k, v, f, c, q: put(b"cas", k, v, f, b"0", c + q), KEY, VALUE, FLAGS, CAS, QUIET),
    st.builds(
        lambda c, k, d, q: b"%b %b %b%b\r\n" % (c, k, d, q), st.sampled_from([b"incr", b"decr"]), KEY, DELTA, QUIET
    ),
    st.builds(lambda k, q: b"delete %b%b\r\n" % (k, q), KEY, st.sampled_from([b"", b" 0", b" noreply", b" 0 noreply"])),
    st.builds(lambda k, t, q: b"touch %b %b%b\r\n" % (k, t, q), KEY, EXPTIME, QUIET),
    st.sampled_from([b"flush_all\r\n", b"flush_all noreply\r\n", b"set a 0 0 3\r\nabcde\r\n", b"mistake\r\n"]),
)


class Client:
    """One connection; it remembers the cas numbers that it was told, so that both servers get their own back."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self._seen: dict[bytes, bytes] = {}
        self._first: dict[bytes, bytes] = {}
        self._last: dict[bytes, bytes] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *args: object) -> None:
        self._sock.close()

    def ask(self, command: bytes) -> bytes:
        """Return the answer to a command, however many lines it has."""
        key = command.split(b" ", 2)[1] if b" " in command else b""
        command = command.replace(b"<last>", self._last.get(key, b"0")).replace(b"<first>", self._first.get(key, b"0"))
        self._sock.sendall(command + MARKER)
        answer = b""
        while not answer.endswith(MARKED):
            more = self._sock.recv(65536)
            assert more, answer
            answer += more
        for match in WITH_CAS.finditer(answer):
            self._first.setdefault(match[2], match[3])
            self._last[match[2]] = match[3]
        return normal(answer, self._seen)


@pytest.mark.timeout(600)
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(commands=st.lists(COMMAND, min_size=5, max_size=40))
def test_any_sequence_of_commands_is_answered_as_memcached_does(ports: tuple[int, int], commands: list[bytes]) -> None:
    with Client(ports[0]) as ours, Client(ports[1]) as real:
        for command in [b"flush_all\r\n", *commands, b"gets a b c d\r\n"]:
            assert ours.ask(command) == real.ask(command), command
