"""The memcached example, with clients that others have written. (See also the differential test.)"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from pymemcache.client.base import Client  # type: ignore[import-untyped]
from pymemcache.exceptions import MemcacheServerError  # type: ignore[import-untyped]

from conftest import (
    IS_FREE_THREADED,
    PATIENCE_S,
    eventually,
    imported,
    installed,
    memory_bytes,
    receive_all,
    receive_exactly,
)
from programs import Program, running

MIB = 1 << 20


@contextlib.contextmanager
def client_of(server: Program) -> Iterator[Client]:
    """Give a client for the length of a block; its every request is answered, ``set`` too."""
    with contextlib.closing(Client(("127.0.0.1", server.port), timeout=PATIENCE_S, default_noreply=False)) as client:
        yield client


def stats_of(server: Program) -> dict[str, int]:
    """Return the numbers in a server's stats."""
    with client_of(server) as client:
        told = {name.decode(): value for name, value in client.stats().items()}
    return {name: int(value) for name, value in told.items() if str(value).isdecimal() or isinstance(value, int)}


def address_of(peer: socket.socket) -> str:
    """Return how the server's log names a client."""
    host, port = peer.getsockname()
    return f"{host}:{port}"


def in_threads(count: int, work: Callable[[int], object]) -> None:
    """Call ``work(number)`` in so many threads at once."""
    failed: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not failed, failed


# --- clients ---


def test_memccapable_finds_nothing_to_complain_about() -> None:
    program = installed("memccapable")
    with running("memcached/server.py", "--threads", "2") as server:
        done = subprocess.run(
            [program, "-h", "127.0.0.1", "-p", str(server.port), "-a", "-t", "10"],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert "All tests passed" in done.stdout + done.stderr
        assert done.returncode == 0
        assert "fail" not in (done.stdout + done.stderr).lower()


def test_memcstat_shows_the_counts() -> None:
    program = installed("memcstat")
    with running("memcached/server.py", "--memory", "8") as server:
        with client_of(server) as client:
            client.set("a", "1")
            client.get("a")
            client.get("b")
        done = subprocess.run(
            [program, f"--servers=127.0.0.1:{server.port}"],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
        told = dict(re.findall(r"^\s*(\w+): (.+?)$", done.stdout, re.MULTILINE))
        assert told["pid"] == str(server.process.pid)
        assert told["limit_maxbytes"] == str(8 * MIB)
        assert (told["cmd_set"], told["get_hits"], told["get_misses"], told["curr_items"]) == ("1", "1", "1", "1")


def test_pymemcache_gets_what_it_has_set() -> None:
    with running("memcached/server.py") as server, client_of(server) as client:
        values = {f"key-{i}": os.urandom(i * 7) for i in range(200)}
        assert client.set_many(values) == []
        assert client.get_many([*values, "none"]) == values
        assert client.set("a", b"1", noreply=True) is True
        assert client.add("a", b"2") is False
        assert client.replace("a", b"2") is True
        assert client.append("a", b"3")
        assert client.prepend("a", b"1")
        value, cas = client.gets("a")
        assert value == b"123"
        assert client.cas("a", b"5", cas) is True
        assert client.cas("a", b"6", cas) is False
        assert client.cas("none", b"6", cas) is None
        assert client.incr("a", 37) == 42
        assert client.decr("a", 50) == 0
        assert client.touch("a", 100) is True
        assert client.raw_command(b"gat 100 a", b"END\r\n") == b"VALUE a 0 2\r\n0 \r\n"
        assert client.delete("a") is True
        assert client.delete("a") is False
        with pytest.raises(MemcacheServerError, match="object too large"):
            client.set("large", bytes(2 * MIB))
        assert client.get("large") is None
        assert client.version().startswith(b"1.6.")
        assert client.flush_all() is True
        assert client.get_many(list(values)) == {}


@pytest.mark.skipif(IS_FREE_THREADED, reason="pylibmc turns the GIL back on")
def test_pylibmc_gets_back_the_types_that_its_flags_tell() -> None:
    pylibmc = imported("pylibmc")
    with running("memcached/server.py", "--threads", "2") as server:
        client = pylibmc.Client([f"127.0.0.1:{server.port}"], behaviors={"cas": True, "tcp_nodelay": True})
        values = {"text": "ä", "number": 2**40, "list": [1, {"a": None}], "bytes": b"\r\n\0", "bool": True}
        assert client.set_multi(values) == []
        assert client.get_multi([*values, "none"]) == values
        many = {f"key-{i}": i for i in range(5000)}
        assert client.set_multi(many) == []
        assert client.get_multi(list(many)) == many  # one line of 50 KB
        assert client.incr("key-7", 5) == 12
        value, cas = client.gets("number")
        assert value == 2**40
        assert client.cas("number", 1, cas)
        with pytest.raises(pylibmc.Error):
            client.set("large", os.urandom(3 * MIB))
        assert client.get("text") == "ä"
        assert client.set("soon", 1, time=1)
        eventually(lambda: client.get("soon") is None)
        client.disconnect_all()


# --- threads ---


@pytest.mark.parametrize("threads", ["0", "2"])
def test_concurrent_clients_lose_no_incr_no_cas_and_no_append(threads: str) -> None:
    clients, rounds = 6, 150
    with running("memcached/server.py", "--threads", threads) as server:
        with client_of(server) as client:
            client.set_many({"incr": "0", "cas": "0", "append": ""})

        def work(number: int) -> None:
            with client_of(server) as client:
                for _ in range(rounds):
                    client.incr("incr", 1)
                    client.append("append", b"%d," % number)
                    while True:
                        value, cas = client.gets("cas")
                        if client.cas("cas", b"%d" % (int(value) + 1), cas):
                            break

        in_threads(clients, work)
        with client_of(server) as client:
            assert client.get("incr") == client.get("cas") == b"%d" % (clients * rounds)
            appended = client.get("append").rstrip(b",").split(b",")
        assert sorted(map(int, appended)) == sorted(list(range(clients)) * rounds)


def test_everybody_sees_whole_values_while_they_change() -> None:
    with running("memcached/server.py", "--threads", "2") as server:

        def work(number: int) -> None:
            with client_of(server) as client:
                for i in range(100):
                    client.set("a", b"%d" % number * (100 * (i % 50) + 1))
                    assert len(set(client.get("a"))) == 1

        in_threads(4, work)


# --- memory ---


@pytest.mark.measures_memory
@pytest.mark.parametrize("threads", ["0", "2"])
def test_the_memory_limit_holds_and_what_is_used_stays(threads: str) -> None:
    with running("memcached/server.py", "--memory", "8", "--threads", threads) as server, client_of(server) as client:
        client.set("kept", "precious")
        client.set("lost", "worthless")
        before = memory_bytes(server.process.pid)
        for batch in range(40):  # of 1 MiB
            values = {f"{batch}-{i}": bytes(4096) for i in range(256)}
            client.set_many(values, noreply=True)
            assert client.get("kept") == b"precious"
        stats = stats_of(server)
        assert stats["bytes"] <= stats["limit_maxbytes"] == 8 * MIB
        assert stats["bytes"] > 7 * MIB
        assert stats["evictions"] > 30 * 256
        assert client.get("lost") is None
        assert client.get("39-255") is not None
        assert client.get("0-0") is None
        assert memory_bytes(server.process.pid) - before < 16 * MIB


@pytest.mark.timeout(600)
def test_100_000_expired_items_are_swept_though_nobody_asks_for_them() -> None:
    count = 100_000
    with running("memcached/server.py", "--memory", "256") as server:
        with server.connect() as peer:
            peer.sendall(b"set kept 0 1000 1 noreply\r\nx\r\n")
            for begin in range(0, count, 10_000):
                keys = range(begin, begin + 10_000)
                peer.sendall(b"".join([b"set key-%d 0 1 1 noreply\r\nx\r\n" % key for key in keys]))
            peer.sendall(b"version\r\n")
            receive_exactly(peer, 8)
        eventually(lambda: stats_of(server)["curr_items"] == 1)
        stats = stats_of(server)
        assert stats["total_items"] == count + 1
        assert stats["reclaimed"] == count
        assert stats["evictions"] == 0
        assert stats["bytes"] < 1000
        with client_of(server) as client:
            assert client.get("kept") == b"x"


def test_a_flush_may_come_later() -> None:
    with running("memcached/server.py") as server, client_of(server) as client:
        client.set("a", "1")
        asked = time.monotonic()
        assert client.flush_all(delay=2)
        assert client.get("a") == b"1" or time.monotonic() - asked >= 2
        eventually(lambda: client.get("a") is None)
        client.set("a", "2")
        client.flush_all(delay=1000)
        client.flush_all()
        client.set("a", "3")
        assert client.get("a") == b"3"


# --- peers of every kind ---


def test_quit_ends_the_connection_after_what_came_before() -> None:
    with running("memcached/server.py") as server, server.connect() as peer:
        peer.sendall(b"set a 0 0 1\r\n1\r\nget a\r\nquit\r\nset a 0 0 1\r\n2\r\nget a\r\nset a 0 0 9999999\r\n")
        assert receive_all(peer) == b"STORED\r\nVALUE a 0 1\r\n1\r\nEND\r\n"
        with client_of(server) as client:
            assert client.get("a") == b"1"


def test_rubbish_is_an_error_line_by_line_and_one_without_an_end_is_cut_off() -> None:
    noise = random.Random(7)
    with running("memcached/server.py") as server:
        lines = [bytes(noise.choices(range(128, 256), k=noise.randrange(1, 100))) for _ in range(2000)]
        with server.connect() as peer:
            peer.sendall(b"\n".join([*lines, b""]))
            assert receive_exactly(peer, 7 * len(lines)) == b"ERROR\r\n" * len(lines)
        with server.connect() as peer:
            with pytest.raises(OSError):  # it may be noticed when sending
                for _ in range(64):
                    peer.sendall(bytes(65536))
                assert peer.recv(1) == b""
                raise ConnectionResetError
        server.wait_for_log(r"a line of more than \d+ bytes; \S+ is cut off")
        with client_of(server) as client:
            assert client.set("a", "1")


@pytest.mark.measures_memory
def test_too_large_a_block_is_thrown_away_and_the_next_request_answered() -> None:
    with running("memcached/server.py") as server, server.connect() as peer:
        before = memory_bytes(server.process.pid)
        peer.sendall(b"set a 0 0 1\r\n1\r\nset a 0 0 100000000\r\n")
        for _ in range(100):
            peer.sendall(b"get a\r\n.\r\n" * 100_000)
        peer.sendall(b"\r\nget a\r\nset b 0 0 1\r\n2\r\nget b\r\n")
        expected = b"STORED\r\nSERVER_ERROR object too large for cache\r\nEND\r\nSTORED\r\nVALUE b 0 1\r\n2\r\nEND\r\n"
        assert receive_exactly(peer, len(expected)) == expected
        assert memory_bytes(server.process.pid) - before < 20 * MIB


@pytest.mark.measures_memory
@pytest.mark.parametrize("request_form", ["one line of many keys", "many lines"])
@pytest.mark.parametrize("threads", ["0", "2"])
def test_who_asks_for_gigabytes_and_does_not_read_holds_nobody_up(request_form: str, threads: str) -> None:
    with running("memcached/server.py", "--threads", threads) as server, client_of(server) as client:
        value = os.urandom(MIB - 1000)
        client.set("a", value)
        before = memory_bytes(server.process.pid)
        with server.connect() as peer:
            line = b"get" + b" a" * 5000 + b"\r\n"
            peer.sendall(line if request_form == "one line of many keys" else b"get a\r\n" * 5000)
            head = b"VALUE a 0 %d\r\n" % len(value)
            assert receive_exactly(peer, len(head)) == head
            for i in range(100):
                client.set("b", b"%d" % i)
                assert client.get("b") == b"%d" % i
            assert memory_bytes(server.process.pid) - before < 40 * MIB


@pytest.mark.measures_memory
def test_who_pipelines_large_gets_and_does_not_read_costs_a_few_of_them() -> None:
    connections, value = 30, os.urandom(MIB - 1000)
    with running("memcached/server.py") as server, client_of(server) as client, contextlib.ExitStack() as stack:
        client.set("a", value)
        before = memory_bytes(server.process.pid)
        head = b"VALUE a 0 %d\r\n" % len(value)
        for _ in range(connections):
            peer = stack.enter_context(server.connect())
            peer.sendall(b"get a\r\n" * 16)
            assert receive_exactly(peer, len(head)) == head
        assert client.get("a") == value
        assert memory_bytes(server.process.pid) - before < connections * 4 * MIB


@pytest.mark.parametrize("threads", ["0", "2"])
def test_long_answers_come_whole_and_in_order_and_after_the_peers_fin(threads: str) -> None:
    sizes = [1000, MIB - 200, 0, 300_000]
    with running("memcached/server.py", "--threads", threads) as server:
        values = [os.urandom(size) for size in sizes]
        answers = [b"VALUE %d 7 %d\r\n%b\r\n" % (i, len(value), value) for i, value in enumerate(values)]
        with server.connect() as peer:
            for i, value in enumerate(values):
                peer.sendall(b"set %d 7 0 %d noreply\r\n%b\r\n" % (i, len(value), value))
            peer.sendall(
                b"get 0 1 none 2 3\r\n" * 10 + b"gat 0 3 1\r\nnonsense\r\nget " + b"k" * 251 + b" 1\r\nget 1\r\n"
            )
            peer.shutdown(socket.SHUT_WR)
            expected = (b"".join(answers) + b"END\r\n") * 10 + answers[3] + answers[1] + b"END\r\nERROR\r\n"
            expected += b"CLIENT_ERROR bad command line format\r\n" + answers[1] + b"END\r\n"
            received = receive_all(peer)
        assert len(received) == len(expected)
        assert hashlib.sha256(received).digest() == hashlib.sha256(expected).digest()


def test_requests_that_follow_while_answers_wait_are_answered_too() -> None:
    with running("memcached/server.py") as server, server.connect() as peer:
        value = os.urandom(MIB - 200)
        peer.sendall(b"set a 0 0 %d noreply\r\n%b\r\n" % (len(value), value))
        one = b"VALUE a 0 %d\r\n%b\r\nEND\r\n" % (len(value), value)
        peer.sendall(b"get a\r\n" * 20)
        assert receive_exactly(peer, 10) == one[:10]
        sender = threading.Thread(target=peer.sendall, args=(b"incr n 1\r\nget a\r\n" * 20 + b"quit\r\nget a\r\n",))
        sender.start()
        assert one[:10] + receive_all(peer) == one * 20 + (b"NOT_FOUND\r\n" + one) * 20
        sender.join(PATIENCE_S)


def test_too_large_a_block_is_thrown_away_while_answers_wait() -> None:
    with running("memcached/server.py") as server, server.connect() as peer:
        value = os.urandom(MIB - 200)
        peer.sendall(b"set a 0 0 %d noreply\r\n%b\r\n" % (len(value), value))
        one = b"VALUE a 0 %d\r\n%b\r\nEND\r\n" % (len(value), value)
        block = b"get a\r\n" * 500_000
        requests = b"get a\r\n" * 10 + b"set b 0 0 %d\r\n%b\r\nget b\r\nquit\r\n" % (len(block), block)
        sender = threading.Thread(target=peer.sendall, args=(requests,))
        sender.start()
        assert receive_all(peer) == one * 10 + b"SERVER_ERROR object too large for cache\r\nEND\r\n"
        sender.join(PATIENCE_S)


def test_who_comes_and_who_leaves_is_logged_and_why() -> None:
    with running("memcached/server.py") as server:
        with server.connect() as peer:
            address = address_of(peer)
            server.wait_for_log(f"{address} is up$")
        server.wait_for_log(f"{address} is down$")
        with server.connect() as peer:
            address = address_of(peer)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.wait_for_log(f"{address} is down: .*reset by peer")


def test_verbosity_lets_the_log_tell_more() -> None:
    with running("memcached/server.py") as server, client_of(server) as client:
        client.set("a", os.urandom(MIB - 1000))

        def leave_answers_behind() -> bool:
            with server.connect() as peer:
                address = address_of(peer)
                peer.sendall(b"get a\r\n" * 16)
                peer.recv(1)
            server.wait_for_log(f"{address} is down")
            return re.search(r" memcached-\S+#\d+: ", server.err) is not None  # the library's own words

        assert not leave_answers_behind()
        assert client.raw_command(b"verbosity 1") == b"OK"
        eventually(leave_answers_behind)


def test_connections_have_a_limit() -> None:
    with running("memcached/server.py", "--connections", "2") as server:
        with client_of(server) as one, client_of(server) as other:
            assert one.set("a", "1")
            assert other.get("a") == b"1"
            with server.connect() as third:
                assert third.recv(1) == b""
            assert one.stats()[b"rejected_connections"] == 1


def test_too_little_memory_is_refused() -> None:
    with Program("memcached/server.py", "--memory", "1") as server:
        assert server.wait() == 2
        assert "--memory must be 2 at least" in server.err
