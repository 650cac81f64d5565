"""The Redis example and the real Redis are asked the same, and must answer the same to the last byte."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from conftest import PATIENCE_S, eventually, installed
from programs import Program, running
from redis_requests import ENDS, TIMES, UNORDERED, Request, Requests

SLACK_S = 20


class Peer:
    """A connection that sends requests and reads the replies as they stand."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._file: BinaryIO = sock.makefile("rb")

    def ask(self, *requests: Request) -> list[bytes]:
        self._socket.sendall(b"".join([encode(request) for request in requests]))
        return [self.reply() for _ in requests]

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def reply(self) -> bytes:
        line = self._file.readline()
        kind, rest = line[:1], line[1:-2]
        assert line.endswith(b"\r\n"), f"the stream ended in {line!r}"
        if kind in b"$=" and rest != b"-1":
            return line + self._file.read(int(rest) + 2)
        if kind in b"*~>%" and rest != b"-1":
            return line + b"".join([self.reply() for _ in range(int(rest) * (2 if kind == b"%" else 1))])
        return line

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def encode(request: Request) -> bytes:
    return b"*%d\r\n" % len(request) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in request])


class Pair:
    """A connection to each of the two servers."""

    def __init__(self, theirs: Path, ours: Program) -> None:
        self._path, self._program = theirs, ours
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE_S)
        sock.connect(str(theirs))
        self.theirs, self.ours = Peer(sock), Peer(ours.connect())

    def ask(self, *requests: Request) -> list[bytes]:
        theirs, ours = self.theirs.ask(*requests), self.ours.ask(*requests)
        for request, expected, got in zip(requests, theirs, ours, strict=True):
            name = request[0].lower()
            if name in TIMES and expected[1:2].isdigit():
                slack = SLACK_S * (1000 if name.startswith(b"p") else 1)
                assert abs(int(expected[1:]) - int(got[1:])) <= slack, request
            elif name in UNORDERED:
                assert sorted(expected.splitlines()) == sorted(got.splitlines()), request
            else:
                assert got == expected, request
        return ours

    def another(self) -> Pair:
        return Pair(self._path, self._program)

    def close(self) -> None:
        self.theirs.close()
        self.ours.close()


def wait_for_waiting(peer: Peer, count: int) -> None:
    """Wait until so many clients of a server wait for a list."""
    eventually(lambda: b"blocked_clients:%d\r\n" % count in peer.ask((b"info", b"clients"))[0])


@pytest.fixture(scope="module")
def real_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    program = installed("redis-server")
    path = tmp_path_factory.mktemp("redis") / "socket"
    options = ("--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--dir", str(path.parent))
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL) as process:
        try:
            eventually(path.exists)
            yield path
        finally:
            process.kill()
            process.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def our_redis() -> Iterator[Program]:
    with running("redis/server.py") as server:
        yield server


@pytest.fixture
def pair(real_redis: Path, our_redis: Program) -> Iterator[Pair]:
    with contextlib.closing(Pair(real_redis, our_redis)) as pair:
        pair.ask((b"flushall",))
        yield pair


@pytest.mark.parametrize("version", [b"2", b"3"])
@pytest.mark.parametrize("seed", range(4))
def test_every_reply_is_the_one_that_redis_gives(pair: Pair, version: bytes, seed: int) -> None:
    pair.theirs.ask((b"hello", version))
    pair.ours.ask((b"hello", version))
    requests = Requests(seed)
    replies = [reply for _ in range(25) for reply in pair.ask(*requests.batch())]
    # Two servers that refuse everything agree as well.
    assert sum(not reply.startswith(b"-") for reply in replies) > len(replies) / 2


@pytest.mark.parametrize("version", [b"2", b"3"])
def test_subscriptions_are_answered_as_redis_does(pair: Pair, version: bytes) -> None:
    pair.theirs.ask((b"hello", version))
    pair.ours.ask((b"hello", version))
    script = (
        (b"unsubscribe",),
        (b"punsubscribe",),
        (b"subscribe", b"one"),
        (b"subscribe", b"one"),
        (b"psubscribe", b"o*"),
        (b"psubscribe", b"[ab]"),
        (b"ping",),
        (b"ping", b"hi"),
        (b"get", b"a"),
        (b"get",),
        (b"nosuch",),
        (b"multi",),
        (b"unsubscribe", b"nosuch"),
        (b"punsubscribe", b"o*"),
        (b"unsubscribe", b"one"),
        (b"punsubscribe",),
        (b"get", b"a"),
        (b"subscribe", b"one"),
        (b"reset",),
        (b"get", b"a"),
    )
    for request in script:
        pair.ask(request)


@pytest.mark.parametrize("version", [b"2", b"3"])
def test_messages_arrive_as_redis_sends_them(pair: Pair, version: bytes) -> None:
    with contextlib.closing(pair.another()) as publishers:
        for peer, publisher in ((pair.theirs, publishers.theirs), (pair.ours, publishers.ours)):
            peer.ask((b"hello", version))
            peer.ask((b"subscribe", b"news"), (b"subscribe", b"other"), (b"psubscribe", b"n*"))
            counts = publisher.ask((b"publish", b"news", b"one\r\ntwo"), (b"publish", b"old", b""))
            assert counts == [b":2\r\n", b":0\r\n"]
        assert [pair.ours.reply(), pair.ours.reply()] == [pair.theirs.reply(), pair.theirs.reply()]


def test_who_publishes_to_himself_gets_the_message_in_its_place(pair: Pair) -> None:
    requests = b"".join(map(encode, [(b"get", b"a"), (b"publish", b"me", b"hi"), (b"echo", b"end")]))
    for peer in (pair.theirs, pair.ours):
        peer.ask((b"hello", b"3"))
        peer.ask((b"subscribe", b"me"))
        peer.send(requests)
    assert [pair.ours.reply() for _ in range(4)] == [pair.theirs.reply() for _ in range(4)]


def test_lists_go_to_those_who_wait_as_in_redis(pair: Pair) -> None:
    with contextlib.closing(pair.another()) as other, contextlib.closing(pair.another()) as third:
        for first, second, pusher in (
            (pair.theirs, other.theirs, third.theirs),
            (pair.ours, other.ours, third.ours),
        ):
            first.send(encode((b"blpop", b"x", b"y", b"0")) + encode((b"echo", b"behind")))
            wait_for_waiting(pusher, 1)
            second.send(encode((b"brpop", b"y", b"0")))
            wait_for_waiting(pusher, 2)
            pusher.ask((b"multi",), (b"rpush", b"y", b"1"), (b"rpush", b"y", b"2", b"3"), (b"lpop", b"y"), (b"exec",))
        assert [pair.ours.reply(), pair.ours.reply()] == [pair.theirs.reply(), pair.theirs.reply()]
        assert other.ours.reply() == other.theirs.reply() == b"*2\r\n$1\r\ny\r\n$1\r\n3\r\n"
        third.ask((b"exists", b"y"), (b"blpop", b"y", b"0.01"), (b"blpop", b"y", b"x"), (b"brpop", b"y", b"-1"))
        third.ask((b"set", b"y", b"v"), (b"blpop", b"x", b"y", b"0"), (b"multi",), (b"blpop", b"x", b"0"), (b"exec",))


@pytest.mark.parametrize("version", [b"2", b"3"])
def test_what_is_drawn_by_chance_is_as_much_as_redis_draws_and_only_what_is_there(pair: Pair, version: bytes) -> None:
    pair.theirs.ask((b"hello", version))
    pair.ours.ask((b"hello", version))
    pair.ask((b"sadd", b"s", b"a", b"b", b"c", b"d"), (b"hset", b"h", b"a", b"1", b"b", b"2", b"c", b"3"))
    for name, key, options in (
        (b"srandmember", b"s", ()),
        (b"hrandfield", b"h", ()),
        (b"hrandfield", b"h", (b"withvalues",)),
    ):
        for count in (b"2", b"3", b"4", b"-1", b"-9"):
            theirs, ours = (peer.ask((name, key, count, *options))[0].splitlines() for peer in (pair.theirs, pair.ours))
            assert len(ours) == len(theirs)
            assert ours[0] == theirs[0]
            names = [line for line in ours if line.isalpha()]
            assert set(names) <= {b"a", b"b", b"c", b"d"}
            if not count.startswith(b"-"):
                assert len(set(names)) == len(names)
        assert pair.ours.ask((name, key))[0][:4] == b"$1\r\n"
    pair.ask((b"srandmember", b"nosuch"), (b"hrandfield", b"nosuch"), (b"srandmember", b"h"), (b"hrandfield", b"s"))


@pytest.mark.parametrize("version", [b"2", b"3"])
def test_lists_move_to_those_who_wait_as_in_redis(pair: Pair, version: bytes) -> None:
    with contextlib.closing(pair.another()) as mover, contextlib.closing(pair.another()) as pusher:
        for waiter, second, third in ((pair.theirs, mover.theirs, pusher.theirs), (pair.ours, mover.ours, pusher.ours)):
            waiter.ask((b"hello", version))
            waiter.send(encode((b"blmove", b"x", b"y", b"left", b"right", b"0")))
            wait_for_waiting(third, 1)
            second.send(encode((b"brpoplpush", b"y", b"z", b"0")))
            wait_for_waiting(third, 2)
            third.ask((b"rpush", b"x", b"1", b"2"))
        assert pair.ours.reply() == pair.theirs.reply()
        assert mover.ours.reply() == mover.theirs.reply() == b"$1\r\n1\r\n"
        pusher.ask(*((b"lrange", key, b"0", b"-1") for key in (b"x", b"y", b"z")), (b"set", b"y", b"v"), (b"del", b"x"))
        for waiter, third in ((pair.theirs, pusher.theirs), (pair.ours, pusher.ours)):
            waiter.send(encode((b"blmove", b"x", b"y", b"left", b"right", b"0")))
            wait_for_waiting(third, 1)
            third.ask((b"rpush", b"x", b"stays"))
        assert pair.ours.reply() == pair.theirs.reply()
        pair.ask((b"lrange", b"x", b"0", b"-1"), (b"blmove", b"x", b"y", b"left", b"left", b"0"))
        pair.ask((b"blmove", b"nosuch", b"y", b"left", b"left", b"0.01"), (b"brpoplpush", b"nosuch", b"y", b"x"))
        pair.ask((b"blmove", b"nosuch", b"y", b"left", b"bad", b"0"), (b"blmove", b"nosuch", b"y", b"left", b"left"))
        pair.ask(
            (b"multi",),
            (b"blmove", b"nosuch", b"y", b"left", b"left", b"0"),
            (b"exec",),
            (b"blmove", b"y", b"x", *ENDS[:2], b"0"),
        )


def test_lpos_bears_every_number(pair: Pair) -> None:
    pair.ask((b"rpush", b"l", *b"a b a c a".split()))
    numbers = (b"1", b"2", b"-1", b"-2", b"9", b"9223372036854775807", b"-9223372036854775807")
    for rank in numbers:
        pair.ask((b"lpos", b"l", b"a", b"rank", rank))
        for count in (b"0", *numbers):
            for length in (b"0", *numbers):
                pair.ask((b"lpos", b"l", b"a", b"rank", rank, b"count", count, b"maxlen", length))


def test_every_command_is_described_as_redis_describes_it(pair: Pair) -> None:
    names = pair.ours.ask((b"command", b"list"))[0].splitlines()[2::2]
    assert len(names) > 100
    for name in names:
        theirs, ours = (peer.ask((b"command", b"info", name))[0].splitlines() for peer in (pair.theirs, pair.ours))
        count, their_count = int(ours[5][1:]), int(theirs[5][1:])
        assert ours[2:5] == theirs[2:5]  # the name and the arity
        assert ours[6 + count : 9 + count] == theirs[6 + their_count : 9 + their_count], name  # where the keys are


def test_who_leaves_while_waiting_swallows_nothing_there_either(pair: Pair) -> None:
    with contextlib.closing(pair.another()) as other:
        for waiter, pusher in ((pair.theirs, other.theirs), (pair.ours, other.ours)):
            waiter.send(encode((b"blpop", b"x", b"0")))
            wait_for_waiting(pusher, 1)
            waiter.send(encode((b"ping",)) * 50_000)
            waiter.close()
            wait_for_waiting(pusher, 0)
        assert other.ask((b"rpush", b"x", b"1"), (b"llen", b"x")) == [b":1\r\n", b":1\r\n"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"*x\r\n",
        b"*1\r\n:1\r\n",
        b"*1\r\n$x\r\n",
        b"*1\r\n$-5\r\n",
        b"*99999999999\r\n",
        b'get "\r\n',
        b"x" * 70_000,
        b"*1\r\n$99999999999\r\n",
    ],
)
def test_rubbish_is_refused_in_the_same_words(pair: Pair, garbage: bytes) -> None:
    answers = []
    for peer in (pair.theirs, pair.ours):
        peer.send(encode((b"echo", b"before")) + garbage)
        answers.append([peer.reply(), peer.reply()])
    assert answers[0] == answers[1]


def test_lines_are_requests_too(pair: Pair) -> None:
    for peer in (pair.theirs, pair.ours):
        peer.send(b"set a \"x\\r\\n y\"\r\n\r\nget a\nECHO 'it\\'s'\r\n")
    assert [pair.ours.reply() for _ in range(3)] == [pair.theirs.reply() for _ in range(3)]


def test_patterns_mean_what_they_mean_to_redis(pair: Pair) -> None:
    chance = random.Random(1)
    names = {bytes(chance.choices(b"ab-^]\n", k=chance.randint(1, 5))) for _ in range(150)}
    pair.ask(*[(b"set", name, b"v") for name in names])
    letters = (b"a", b"b", b"-", b"^", b"]", b"*", b"*", b"?", b"[", b"[", b"[^", b"a-b", b"\\")
    patterns = [b"".join(chance.choices(letters, k=chance.randint(0, 7))) for _ in range(1500)]
    pair.ask(*[(b"keys", pattern) for pattern in patterns])
