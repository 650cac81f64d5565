"""The Redis example with Redis's own clients and with redis-py: types, expiry, transactions, messages, limits."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from conftest import PATIENCE_S, eventually, installed, receive_all, receive_exactly, reset, run_at_once
from programs import Program, running

MEBIBYTE = 1 << 20


@pytest.fixture(params=["0", "2"], ids=["one-loop", "two-loops"])
def server(request: pytest.FixtureRequest) -> Iterator[Program]:
    with running("redis/server.py", "--threads", request.param) as server:
        yield server


@contextlib.contextmanager
def client(server: Program, protocol: int = 3, **options: Any) -> Iterator[Any]:
    with redis.Redis(port=server.port, protocol=protocol, socket_timeout=PATIENCE_S, **options) as client:
        yield client
        client.connection_pool.disconnect()


def redis_cli(server: Program, *arguments: str, text: str | None = None) -> list[str]:
    command = [installed("redis-cli"), "-p", str(server.port), *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    return done.stdout.splitlines()


# --- with Redis's own programs ---


def test_redis_cli_talks_to_it() -> None:
    with running("redis/server.py") as server:
        assert redis_cli(server, "set", "name", "ann") == ["OK"]
        assert redis_cli(server, "--no-raw", "get", "name") == ['"ann"']
        assert redis_cli(server, "lpush", "name", "x")[0].startswith("WRONGTYPE Operation against a key")
        assert redis_cli(server, "get")[0] == "ERR wrong number of arguments for 'get' command"
        assert redis_cli(server, "-3", "--no-raw", "hset", "h", "a", "1", "b", "2") == ["(integer) 2"]
        assert redis_cli(server, "-3", "--no-raw", "hgetall", "h") == ['1# "a" => "1"', '2# "b" => "2"']
        assert sorted(redis_cli(server, "--scan")) == ["h", "name"]
        assert redis_cli(server, text="multi\nset a 1\nincr a\nexec\n") == ["OK", "QUEUED", "QUEUED", "OK", "2"]
        assert redis_cli(server, "command", "docs", "get")[:2] == ["get", "summary"]
        assert len(redis_cli(server, "command", "list")) == int(redis_cli(server, "command", "count")[0])
        requests = "".join(f"*3\r\n$3\r\nSET\r\n$5\r\nk{n:04}\r\n$4\r\n{n:04}\r\n" for n in range(5000))
        assert redis_cli(server, "--pipe", text=requests)[-1] == "errors: 0, replies: 5000"
        assert redis_cli(server, "get", "k4999") == ["4999"]


def test_redis_benchmark_is_served_to_the_end(server: Program) -> None:
    tests = "ping_inline,ping_mbulk,set,get,incr,lpush,rpush,lpop,rpop,sadd,hset,spop,lrange_100,mset"
    size = ("-n", "1000", "-c", "20", "-P", "16", "-r", "100")
    command = [installed("redis-benchmark"), "-p", str(server.port), "-t", tests, *size, "--csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert done.stderr == ""
    # One line of titles, and LRANGE fills its list first.
    assert len(done.stdout.splitlines()) == 1 + len(tests.split(",")) + 1, done.stdout


# --- with redis-py ---


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py_finds_every_type(protocol: int) -> None:
    with running("redis/server.py") as server, client(server, protocol, decode_responses=True) as r:
        assert r.set("s", "v", ex=100, nx=True)
        assert r.set("s", "w", xx=True, get=True, keepttl=True) == "v"
        assert 90 < r.ttl("s") <= 100
        assert r.mget("s", "nosuch") == ["w", None]
        assert r.incrbyfloat("f", 0.1) + r.incrbyfloat("f", 0.2) == 0.4
        assert r.hset("h", mapping={"a": "1", "b": "2"}) == 2
        assert r.hgetall("h") == {"a": "1", "b": "2"}
        assert r.rpush("l", *range(5)) == 5
        assert r.lrange("l", 1, -2) == ["1", "2", "3"]
        assert r.sadd("one", "a", "b", "c") == r.sadd("other", "b", "c", "d") == 3
        assert set(r.sinter("one", "other")) == {"b", "c"}
        assert set(r.sdiff("one", "other")) == {"a"}
        assert set(r.spop("one", 3)) == {"a", "b", "c"}
        assert r.exists("one") == 0
        assert {r.type(key) for key in r.keys("?")} == {"string", "hash", "list"}
        assert r.client_setname("me")
        assert r.client_getname() == "me"
        assert r.client_info()["name"] == "me"
        assert [one["name"] for one in r.client_list()] == ["me"]
        assert r.client_list(_type="pubsub") == r.client_list(client_id=[0]) == []
        assert abs(r.time()[0] - time.time()) < 60
        assert r.info()["connected_clients"] == 1
        assert r.config_get("save") == {"save": ""}
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            r.incr("l")


def test_what_has_expired_is_gone_whether_asked_for_or_not() -> None:
    with running("redis/server.py") as server, client(server) as r:
        r.set("asked", "v", px=1)
        assert eventually(lambda: r.get("asked") is None)
        with r.pipeline(transaction=False) as pipeline:
            for number in range(3000):
                pipeline.psetex(f"never asked {number}", 1, "v")
            pipeline.set("stays", "v", ex=1000)
            pipeline.execute()
        eventually(lambda: r.dbsize() == 1)
        assert r.info("stats")["expired_keys"] == 3001


def test_counting_at_once_loses_nothing(server: Program) -> None:
    def count() -> None:
        with client(server) as r:
            for _ in range(10):
                with r.pipeline(transaction=False) as pipeline:
                    for _ in range(50):
                        pipeline.incr("n")
                        pipeline.hincrby("h", "n", 2)
                    pipeline.execute()

    run_at_once([count] * 4)
    with client(server) as r:
        assert r.get("n") == b"2000"
        assert r.hget("h", "n") == b"4000"


def test_a_transaction_is_done_as_a_whole_or_not_at_all(server: Program) -> None:
    is_over = threading.Event()
    pairs: set[tuple[bytes, bytes]] = set()

    def write(name: str) -> None:
        with client(server) as r:
            for number in itertools.takewhile(lambda _: not is_over.is_set(), itertools.count()):
                r.pipeline().set("a", f"{name}{number}").set("b", f"{name}{number}").execute()

    def read() -> None:
        with client(server) as r:
            while len(pairs) < 50 and not is_over.is_set():
                pairs.add(tuple(r.mget("a", "b")))

    def to_the_end(function: Callable[[], object]) -> None:
        try:
            function()
        finally:
            is_over.set()

    functions = (lambda: write("x"), lambda: write("y"), read)
    run_at_once([functools.partial(to_the_end, function) for function in functions])
    assert len(pairs) >= 50  # so they were read while they changed
    assert all(one == other for one, other in pairs)


def test_watch_lets_only_one_of_two_changes_through(server: Program) -> None:
    def add_one(pipeline: Any) -> None:
        number = int(pipeline.get("n") or 0)
        pipeline.multi()
        pipeline.set("n", number + 1)

    def add() -> None:
        with client(server) as r:
            for _ in range(25):
                r.transaction(add_one, "n")

    run_at_once([add, add, add])
    with client(server) as r:
        assert r.get("n") == b"75"
        with r.pipeline() as pipeline:
            pipeline.watch("n")
            r.expire("n", -1)
            pipeline.multi()
            pipeline.set("n", "too late")
            with pytest.raises(redis.WatchError):
                pipeline.execute()
        assert not r.exists("n")


@pytest.mark.parametrize("protocol", [2, 3])
def test_messages_reach_all_who_listen_in_order(server: Program, protocol: int) -> None:
    with client(server, protocol) as r, r.pubsub() as exact, r.pubsub() as pattern:
        exact.subscribe("news", "other")
        pattern.psubscribe("n[a-f]*")
        for pubsub, count in ((exact, 2), (pattern, 1)):
            for _ in range(count):
                assert pubsub.get_message(timeout=PATIENCE_S)["type"].endswith("subscribe")
        assert {r.publish("news", str(n)) for n in range(200)} == {2}
        for pubsub in (exact, pattern):
            got = [pubsub.get_message(timeout=PATIENCE_S)["data"] for _ in range(200)]
            assert got == [str(n).encode() for n in range(200)]
        assert dict(r.pubsub_numsub("news", "nobody")) == {b"news": 1, b"nobody": 0}
        assert r.pubsub_numpat() == 1
        exact.unsubscribe()
    with client(server) as r:
        eventually(lambda: r.pubsub_channels() == [] and r.pubsub_numpat() == 0)


def test_no_message_comes_after_the_word_that_there_will_be_none(server: Program) -> None:
    batch = b"PUBLISH news begin\r\n" + b"LREM long 0 nosuch\r\n" * 200 + b"PUBLISH news end\r\n"
    with client(server) as r:
        r.rpush("long", *range(5000))
    # Two that connect one after the other are on two loops, if there are two.
    with server.connect() as publisher, server.connect() as listener, listener.makefile("rb") as replies:
        for _ in range(3):
            listener.sendall(b"SUBSCRIBE news\r\n")
            assert [replies.readline() for _ in range(6)][-1] == b":1\r\n"
            publisher.sendall(batch)
            while replies.readline() != b"begin\r\n":
                pass
            listener.sendall(b"UNSUBSCRIBE news\r\n")
            while replies.readline() != b":0\r\n":
                pass
            listener.sendall(b"GET nosuch\r\n")
            assert replies.readline() == b"$-1\r\n"


def test_a_walk_finds_all_keys_that_stay_while_others_come_and_go() -> None:
    with running("redis/server.py") as server, client(server, decode_responses=True) as r:
        names = [f"stays {n}" for n in range(500)]
        r.mset({name: "v" for pair in zip(names, [f"goes {n}" for n in range(500)], strict=True) for name in pair})
        found = set()
        cursor, numbers = 0, itertools.count()
        while True:
            cursor, some = r.scan(cursor, count=17)
            found.update(some)
            if cursor == 0:
                break
            n = next(numbers)
            r.delete(*[f"goes {one}" for one in range(n * 10, n * 10 + 10)])
            r.mset({f"comes {n} {one}": "v" for one in range(5)})
        assert found >= set(names)


# --- lists that clients wait for ---


def test_who_waits_gets_each_element_once(server: Program) -> None:
    got: list[bytes] = []

    def take() -> None:
        with client(server) as r:
            while (popped := r.blpop("jobs", timeout=0))[1] != b"end":
                got.append(popped[1])

    def give() -> None:
        with client(server) as r:
            for n in range(100):
                r.rpush("jobs", f"{n} a", f"{n} b")
            r.rpush("jobs", "end", "end", "end")

    run_at_once([take, take, take, give])
    assert sorted(got) == sorted(f"{n} {letter}".encode() for n in range(100) for letter in "ab")


def test_waiting_ends_with_its_time_and_with_the_connection() -> None:
    with running("redis/server.py", "--threads", "2") as server, client(server) as r:
        assert r.blpop("l", timeout=0.01) is None
        with server.connect() as leaver:
            leaver.sendall(b"BRPOP l 0\r\n")
            eventually(lambda: r.info("clients")["blocked_clients"] == 1)
        eventually(lambda: r.info("clients")["blocked_clients"] == 0)
        assert r.rpush("l", "stays") == 1
        assert r.llen("l") == 1


def test_who_leaves_while_waiting_swallows_nothing_whatever_it_has_asked_besides(server: Program) -> None:
    with client(server) as r:
        with server.connect() as leaver:
            leaver.sendall(b"BLPOP l 0\r\n")
            eventually(lambda: r.info("clients")["blocked_clients"] == 1)
            leaver.sendall(b"PING\r\n" * (MEBIBYTE // 8))  # many reads, and below the limit
        eventually(lambda: r.info("clients")["blocked_clients"] == 0)
        assert r.rpush("l", "stays") == 1
        assert r.llen("l") == 1


def test_who_left_in_the_moment_of_a_push_does_not_get_the_element() -> None:
    with running("redis/server.py") as server, client(server) as r, client(server) as other, server.connect() as busy:
        other.rpush("long", *range(5000))
        with server.connect() as leaver:
            leaver.sendall(b"BLPOP l 0\r\n")
            eventually(lambda: r.info("clients")["blocked_clients"] == 1)
            busy.sendall(b"LREM long 0 nosuch\r\n" * 200)
        # While the server is busy both arrive, and it hears of both at once, in their order: epoll may name one that
        # has just been served, as r has, before those that have come up since.
        assert other.rpush("l", "stays") == 1
        assert r.llen("l") == 1


@pytest.mark.measures_memory
def test_what_is_asked_behind_a_waiting_command_has_a_limit_and_is_answered_in_the_end() -> None:
    request, reply = encode(b"ECHO", b"x" * 65_536), b"$65536\r\n%b\r\n" % (b"x" * 65_536)
    with running("redis/server.py") as server, client(server) as r, server.connect() as waiter:
        before = server.peak_bytes
        waiter.sendall(b"BLPOP l 0\r\n")
        sent = send_until_nobody_reads(waiter, itertools.repeat(request, 64 * MEBIBYTE // len(request)))
        assert sent < 64 * MEBIBYTE
        assert server.peak_bytes - before < 8 * MEBIBYTE
        r.rpush("l", "x")
        expected = b"*2\r\n$1\r\nl\r\n$1\r\nx\r\n"
        assert receive_exactly(waiter, len(expected)) == expected
        assert all(receive_exactly(waiter, len(reply)) == reply for _ in range(sent // len(request)))


def test_what_comes_behind_a_waiting_command_is_answered_after_it() -> None:
    with running("redis/server.py", "--threads", "2") as server, client(server) as r, server.connect() as waiter:
        waiter.sendall(b"BLPOP l 0\r\n" + b"ECHO 1\r\n" * 1000)
        eventually(lambda: r.info("clients")["blocked_clients"] == 1)
        waiter.sendall(b"ECHO 2\r\n" * 1000)
        r.rpush("l", "x")
        expected = b"*2\r\n$1\r\nl\r\n$1\r\nx\r\n" + b"$1\r\n1\r\n" * 1000 + b"$1\r\n2\r\n" * 1000
        assert receive_exactly(waiter, len(expected)) == expected


# --- peers that mean harm, or read slowly ---


@pytest.mark.measures_memory
def test_a_subscriber_who_never_reads_is_cut_off(server: Program) -> None:
    with client(server) as r, server.connect() as sleeper:
        sleeper.sendall(b"SUBSCRIBE news\r\n")
        subscribed = b"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n"
        assert receive_exactly(sleeper, len(subscribed)) == subscribed
        before, message = server.peak_bytes, b"x" * MEBIBYTE
        sent = 0
        while r.publish("news", message) == 1:
            sent += 1
            assert sent < 200
        server.wait_for_log("max_output_bytes is 33554432")
        assert server.peak_bytes - before < 100 * MEBIBYTE  # of 200; malloc keeps some of what it was given back


@pytest.mark.measures_memory
def test_who_asks_for_much_and_does_not_read_costs_little_and_gets_it_all_later() -> None:
    with running("redis/server.py") as server, client(server) as r, server.connect() as sleeper:
        value = b"x" * MEBIBYTE
        r.set("large", value)
        before = server.peak_bytes
        sleeper.sendall(b"GET large\r\n" * 300 + b"QUIT\r\n")
        assert all(r.ping() for _ in range(3))  # others are served meanwhile
        assert r.info("stats")["total_commands_processed"] < 100
        reply = b"$1048576\r\n%b\r\n" % value
        assert all(receive_exactly(sleeper, len(reply)) == reply for _ in range(300))
        assert receive_all(sleeper) == b"+OK\r\n"
        assert server.peak_bytes - before < 32 * MEBIBYTE


def test_replies_that_name_one_thing_many_times_have_a_limit() -> None:
    with running("redis/server.py") as server, client(server) as r:
        r.set("large", b"x" * MEBIBYTE)
        r.hset("hash", "large", b"x" * MEBIBYTE)
        with pytest.raises(redis.ResponseError, match="too long"):
            r.mget(["large"] * 50_000)
        with pytest.raises(redis.ResponseError, match="too long"):
            r.hmget("hash", ["large"] * 50_000)
        with pytest.raises(redis.ResponseError, match="too long"):
            r.keys("*" * 10_000)
        with pytest.raises(redis.ResponseError, match="maximum allowed size"):
            r.setrange("large", 1 << 30, "x")


def test_a_request_that_is_too_large_is_refused_before_it_is_there() -> None:
    with running("redis/server.py") as server, server.connect() as peer:
        peer.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$100000000\r\n")
        assert receive_all(peer) == b"-ERR Protocol error: invalid bulk length\r\n"


def test_who_has_said_quit_is_answered_whatever_comes_behind_it() -> None:
    with running("redis/server.py") as server, server.connect() as peer:
        peer.sendall(b"QUIT\r\n" + b"PING\r\n" * (2 * MEBIBYTE))
        assert receive_all(peer) == b"+OK\r\n"


def test_the_log_tells_who_comes_who_goes_and_why() -> None:
    with running("redis/server.py") as server:
        with server.connect() as peer:
            address = re.escape("{}:{}".format(*peer.getsockname()))
            server.wait_for_log(f"{address} is up$")
            peer.sendall(b"*1\r\n:1\r\n")
            assert receive_all(peer) == b"-ERR Protocol error: expected '$', got ':'\r\n"
        server.wait_for_log(f"{address} is cut off: expected '\\$', got ':'$")
        server.wait_for_log(f"{address} is down: expected '\\$', got ':'$")
        peer = server.connect()
        address = re.escape("{}:{}".format(*peer.getsockname()))
        server.wait_for_log(f"{address} is up$")
        reset(peer)
        server.wait_for_log(f"{address} is down: .*reset by peer$")


def test_no_pattern_keeps_it_busy() -> None:
    with running("redis/server.py") as server, client(server) as r:
        r.set("a" * 1000, "v")
        assert r.keys("a*" * 500 + "b") == []
        assert r.keys("a*" * 500) == [b"a" * 1000]
        assert r.keys("[a-c" * 200) == []


def encode(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def send_until_nobody_reads(sock: socket.socket, requests: Iterator[bytes]) -> int:
    """Send until the kernel's buffers have been full for a moment, or all is sent; return how many bytes went."""
    sent = 0
    rest = memoryview(b"")
    while select.select([], [sock], [], 0.5)[1]:
        rest = rest or memoryview(next(requests, b""))
        if not rest:
            break
        count = sock.send(rest, socket.MSG_DONTWAIT)
        rest = rest[count:]
        sent += count
    return sent
