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

Request = tuple[bytes, ...]

BATCH = 64
KEYS = (b"a", b"b", b"c", b"d", b"e")
VALUES = (
    b"",
    b"1",
    b"-7",
    b"10.5",
    b"0.1",
    b"abc",
    b"9223372036854775807",
    b" 1",
    b"01",
    b"1e3",
    b"\0\r\n\xff",
    b"x" * 40,
)
FIELDS = (b"f", b"g", b"h", b"1")
NUMBERS = (b"0", b"1", b"2", b"-1", b"-2", b"3", b"100", b"-100", b"x", b"", b"9223372036854775807", b"1.5", b"+1")
SECONDS = (b"100000", b"200000", b"0", b"-1", b"x", b"9223372036854775807", b"9223372036854775")
MOMENTS = (b"4000000000", b"1", b"5000000000", b"0", b"x")
PATTERNS = (b"*", b"?", b"a*", b"[a-c]", b"[^a]", b"[c-a]", b"\\a", b"[a", b"a\\", b"**b*", b"[]", b"[^]")
FRACTIONS = (
    b"0.1",
    b"0.2",
    b"-3.75",
    b"1e3",
    b"1e-5",
    b"100.123456789",
    b"1e15",
    b"x",
    b"inf",
    b"1e400x",
    b".5",
    b"5.",
)
MOMENTS_TO_COME = ((b"EXAT", b"4000000000"), (b"pxat", b"4000000000000"), (b"exat", b"0"), (b"EXAT", b"x"), (b"pxat",))
UNORDERED = {b"smembers", b"sinter", b"sunion", b"sdiff", b"keys", b"spop", b"scan"}
APPROXIMATE = {b"ttl", b"pttl", b"expiretime", b"pexpiretime"}
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
            if name in APPROXIMATE and expected[1:2].isdigit():
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


class Requests:
    """Makes requests up: sensible ones on few keys, so that they meet each other, and wrong ones of each kind."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def one(self) -> Request:
        """Return a request that may stand anywhere, a transaction too."""
        pick = self._random.choice
        key, other, value, number = pick(KEYS), pick(KEYS), pick(VALUES), pick(NUMBERS)
        field, fraction, seconds, moment = pick(FIELDS), pick(FRACTIONS), pick(SECONDS), pick(MOMENTS)
        several = self._random.sample(VALUES, self._random.randint(1, 4))
        return pick(
            (
                (b"set", key, value),
                (b"SET", key, pick(VALUES), *self._random.choices((b"nx", b"XX", b"get", b"KEEPTTL", b"bad"), k=2)),
                (b"set", key, value, pick((b"ex", b"PX")), seconds),
                (b"set", key, value, *pick(MOMENTS_TO_COME), pick((b"nx", b"get", b"keepttl", b"xx"))),
                (b"get", key),
                (b"GeT", key),
                (b"getset", key, value),
                (b"getdel", key),
                (b"getex", key, pick((b"ex", b"px")), seconds),
                (b"getex", key, *pick(((), (b"persist",), (b"exat", b"4000000000"), (b"bad",), (b"ex",)))),
                (b"mget", key, other, b"nosuch"),
                (b"mset", key, value, other, *self._random.choice(((b"v",), ()))),
                (b"setnx", key, value),
                (b"setex", key, seconds, value),
                (b"psetex", key, b"100000", value),
                (b"append", key, value),
                (b"strlen", key),
                (b"getrange", key, number, pick(NUMBERS)),
                (b"setrange", key, pick(NUMBERS[:7]), value),
                (pick((b"incr", b"decr")), key),
                (pick((b"incrby", b"decrby")), key, number),
                (b"decrby", key, b"-9223372036854775808"),
                (b"incrbyfloat", key, fraction),
                (pick((b"expire", b"pexpire")), key, seconds),
                (b"expire", key, b"%d" % self._random.randrange(10**5, 10**8), *self.conditions()),
                (pick((b"expireat", b"pexpireat")), key, pick((b"4000000000", b"4000000000000", moment))),
                (pick((b"ttl", b"pttl")), key),
                (pick((b"expiretime", b"pexpiretime", b"exists", b"type", b"persist")), key),
                (pick((b"del", b"unlink", b"exists")), key, other, key),
                (b"rename", key, other),
                (b"renamenx", key, other),
                (pick((b"dbsize", b"flushall", b"flushdb") if self._random.random() < 0.1 else (b"dbsize",)),),
                (pick((b"hset", b"HSET")), key, field, value, *pick(((), (b"g", b"2"), (b"g",)))),
                (b"hsetnx", key, field, value),
                (pick((b"hget", b"hexists", b"hstrlen")), key, field),
                (b"hmget", key, field, b"nosuch"),
                (pick((b"hgetall", b"hkeys", b"hvals", b"hlen")), key),
                (b"hdel", key, field, pick(FIELDS)),
                (b"hincrby", key, field, number),
                (b"hincrbyfloat", key, field, fraction),
                (pick((b"lpush", b"rpush", b"lpushx", b"rpushx")), key, *several),
                (pick((b"lpop", b"rpop")), key, *pick(((), (number,), (b"2",), (b"1", b"1")))),
                (b"llen", key),
                (b"lrange", key, number, pick(NUMBERS)),
                (b"lindex", key, number),
                (b"lset", key, pick(NUMBERS), value),
                (b"ltrim", key, number, pick(NUMBERS)),
                (b"lrem", key, pick(NUMBERS), pick(VALUES)),
                (b"sadd", key, *several),
                (b"srem", key, value, b"abc"),
                (b"sismember", key, value),
                (b"smismember", key, value, b"abc"),
                (b"scard", key),
                (b"echo", value),
                (b"ping", *pick(((), (value,), (value, value)))),
                (b"select", pick((b"0", b"99", b"x"))),
                (pick((b"get", b"set", b"hset", b"lpush", b"sadd", b"expire", b"mget", b"dbsize", b"quux")), *several),
                (pick((b"get", b"ttl", b"rename", b"lrange", b"nosuch", b"")),),
                (b"publish", key, value),
                (b"pubsub", *pick(((b"numpat",), (b"numsub", key), (b"channels",), (b"bad",)))),
            )
        )

    def conditions(self) -> tuple[bytes, ...]:
        """Return conditions of EXPIRE. Two moments must be far apart: the servers are asked at different ones."""
        return tuple(self._random.choices((b"nx", b"XX", b"gt", b"LT", b"bad"), k=self._random.choice((0, 0, 1, 1, 2))))

    def unordered(self) -> Request:
        """Return a request whose answer has no order."""
        pick = self._random.choice
        return pick(
            (
                (b"smembers", pick(KEYS)),
                (pick((b"sinter", b"sunion", b"sdiff")), pick(KEYS), pick(KEYS), pick(KEYS)),
                (b"keys", pick(PATTERNS)),
                (b"spop", pick(KEYS), b"1000"),
                (b"scan", b"0", b"count", b"1000", b"match", pick(PATTERNS)),
                (b"scan", b"0", b"count", b"1000", b"type", pick((b"string", b"list", b"set", b"HASH", b"bad"))),
                (b"scan", *pick(((b"x",), (b"0", b"count", b"0"), (b"0", b"bad"), (b"0", b"count", b"x")))),
            )
        )

    def batch(self) -> list[Request]:
        """Return what a client might send in one piece."""
        requests: list[Request] = []
        while len(requests) < BATCH:
            chance = self._random.random()
            if chance < 0.03:
                requests += [(b"watch", self._random.choice(KEYS)), (b"unwatch",)]
            elif chance < 0.06:
                requests += self.transaction()
            elif chance < 0.15:
                requests.append(self.unordered())
            elif chance < 0.16:
                requests.append((self._random.choice((b"exec", b"discard", b"multi", b"discard")),))
                requests.append((b"discard",))
            else:
                requests.append(self.one())
        return requests

    def transaction(self) -> list[Request]:
        watched = [(b"watch", self._random.choice(KEYS))] if self._random.random() < 0.5 else []
        between = [self.one()] if watched else []
        inside = [self.one() for _ in range(self._random.randint(0, 6))]
        # A time may differ, and then a transaction as a whole can't be compared to the last byte.
        inside = [one for one in inside if one[0] not in APPROXIMATE]
        nested = [(b"multi",), (b"watch", b"a")] if self._random.random() < 0.1 else []
        end = (b"discard",) if self._random.random() < 0.1 else (b"exec",)
        return [*watched, *between, (b"multi",), *inside, *nested, end]


@pytest.mark.parametrize("version", [b"2", b"3"])
@pytest.mark.parametrize("seed", range(4))
def test_every_reply_is_the_one_that_redis_gives(pair: Pair, version: bytes, seed: int) -> None:
    pair.theirs.ask((b"hello", version))
    pair.ours.ask((b"hello", version))
    requests = Requests(seed)
    for _ in range(25):
        pair.ask(*requests.batch())


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
