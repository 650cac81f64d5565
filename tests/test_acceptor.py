"""Acceptor: everybody who connects is accepted or turned away, also when no descriptor is left."""

# mypy: disable-error-code="func-returns-value"
# (lambda: (first(), second()) is how a callback does two things here)

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import PATIENCE_S, call_in_loop, eventually, reset, waiting_newcomers
from pymuduo import Acceptor, EventLoop, InetAddress, Socket
from pymuduo.callbacks import Address


class Listener:
    """An acceptor on a free port that keeps what it accepts."""

    def __init__(self, loop: EventLoop, **settings: Any) -> None:
        self.loop = loop
        self.acceptor = Acceptor(loop, InetAddress.loopback(0), **settings)
        self.accepted: list[tuple[int, Address]] = []
        self.acceptor.new_connection_callback = lambda fd, peer: self.accepted.append((fd, peer))
        self.wanted = 0

    def connect(self) -> socket.socket:
        return socket.create_connection(self.acceptor.address.sockaddr, timeout=PATIENCE_S)

    def wait_for_newcomers(self, count: int) -> None:
        """Wait until *count* are in the queue."""
        eventually(lambda: waiting_newcomers(self.acceptor.address.port) == count)

    def run_until_accepted(self, count: int) -> None:
        """Run the loop until *count* have been accepted, for a bounded time."""

        def look() -> None:
            if len(self.accepted) >= count:
                self.loop.quit()

        poll = self.loop.run_every(0.001, look)
        limit = self.loop.run_after(PATIENCE_S, self.loop.quit)
        self.loop.run()
        poll.cancel()
        limit.cancel()
        assert len(self.accepted) == count

    def close(self) -> None:
        self.acceptor.close()
        for fd, _ in self.accepted:
            os.close(fd)


@pytest.fixture
def listener(loop: EventLoop) -> Iterator[Listener]:
    """Return a listening acceptor."""
    made = Listener(loop)
    made.acceptor.listen()
    yield made
    made.close()


def run_for(loop: EventLoop, seconds: float) -> None:
    loop.run_after(seconds, loop.quit)
    loop.run()


# --- accepting ---


def test_the_address_is_the_real_one_from_the_start(loop: EventLoop) -> None:
    acceptor = Acceptor(loop, InetAddress.loopback(0))
    assert acceptor.address.ip == "127.0.0.1"
    assert acceptor.address.port > 0
    acceptor.close()


def test_each_newcomer_is_handed_on_with_its_address(listener: Listener) -> None:
    with listener.connect() as client:
        listener.run_until_accepted(1)
        ((fd, peer),) = listener.accepted
        assert peer == InetAddress(*client.getsockname())
        assert not os.get_blocking(fd)
        os.write(fd, b"hello")
        assert client.recv(10) == b"hello"


def test_an_ipv6_newcomer_has_an_ipv6_address(loop: EventLoop) -> None:
    accepted: list[tuple[int, Address]] = []
    acceptor = Acceptor(loop, InetAddress.loopback(0, ipv6=True))
    acceptor.new_connection_callback = lambda fd, peer: (accepted.append((fd, peer)), loop.quit())
    acceptor.listen()
    with socket.create_connection(("::1", acceptor.address.port), timeout=PATIENCE_S) as client:
        loop.run()
        assert accepted[0][1] == InetAddress("::1", client.getsockname()[1])
    os.close(accepted[0][0])
    acceptor.close()


def test_a_burst_bigger_than_one_event_accepts_is_accepted_whole(listener: Listener) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(listener.connect()) for _ in range(200)]
        listener.run_until_accepted(200)
        assert {peer.port for _, peer in listener.accepted} == {client.getsockname()[1] for client in clients}
        assert len({fd for fd, _ in listener.accepted}) == 200


def test_a_flood_does_not_shut_out_functors(listener: Listener, loop: EventLoop) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(listener.connect())
        seen: list[int] = []
        loop.queue_in_loop(lambda: seen.append(len(listener.accepted)))
        listener.run_until_accepted(200)
        assert seen[0] <= 64  # one event accepts that many at most


def test_a_newcomer_that_left_before_it_was_accepted_is_no_harm(listener: Listener) -> None:
    for _ in range(5):
        reset(listener.connect())
    with listener.connect() as client:
        port = client.getsockname()[1]
        poll = listener.loop.run_every(
            0.001, lambda: listener.loop.quit() if any(p.port == port for _, p in listener.accepted) else None
        )
        limit = listener.loop.run_after(PATIENCE_S, listener.loop.quit)
        listener.loop.run()
        poll.cancel()
        limit.cancel()
        assert port in {peer.port for _, peer in listener.accepted}


def test_without_a_callback_newcomers_are_closed(loop: EventLoop) -> None:
    listener = Listener(loop)
    listener.acceptor.new_connection_callback = None
    listener.acceptor.listen()
    with listener.connect() as client:
        client.setblocking(False)
        received: list[bytes] = []

        def look() -> None:
            try:
                received.append(client.recv(1))
            except BlockingIOError:
                return
            loop.quit()

        poll = loop.run_every(0.001, look)
        loop.run()
        poll.cancel()
        assert received == [b""]
    listener.close()


@pytest.mark.provokes_errors("of a newcomer")
def test_a_callback_that_raises_does_not_stop_accepting(
    listener: Listener, loop: EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(fd: int, peer: Address) -> None:
        listener.accepted.append((fd, peer))
        raise ZeroDivisionError("of a newcomer")

    listener.acceptor.new_connection_callback = fail
    with listener.connect(), listener.connect():
        listener.run_until_accepted(2)
    assert caplog.text.count("ZeroDivisionError: of a newcomer") == 2


def test_newcomers_before_listen_are_refused_and_after_it_accepted(loop: EventLoop) -> None:
    listener = Listener(loop)
    assert not listener.acceptor.is_listening
    with pytest.raises(ConnectionRefusedError):
        listener.connect()
    listener.acceptor.listen()
    assert listener.acceptor.is_listening
    with listener.connect():
        listener.run_until_accepted(1)
    listener.close()


def test_listen_twice_is_harmless(listener: Listener) -> None:
    listener.acceptor.listen()
    with listener.connect():
        listener.run_until_accepted(1)


def test_no_delay_is_inherited_by_what_is_accepted(loop: EventLoop) -> None:
    for no_delay in (False, True):
        listener = Listener(loop, no_delay=no_delay)
        listener.acceptor.listen()
        with listener.connect():
            listener.run_until_accepted(1)
            with socket.socket(fileno=os.dup(listener.accepted[0][0])) as copy:
                assert bool(copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is no_delay
        listener.close()


def test_keep_alive_is_inherited_by_what_is_accepted(listener: Listener) -> None:
    listener.acceptor.listen()
    with listener.connect():
        listener.run_until_accepted(1)
        with socket.socket(fileno=os.dup(listener.accepted[0][0])) as copy:
            assert copy.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_reuse_port_lets_two_share_a_port(loop: EventLoop) -> None:
    first = Acceptor(loop, InetAddress.loopback(0), reuse_port=True)
    first.listen()
    second = Acceptor(loop, first.address, reuse_port=True)
    second.listen()
    assert second.address == first.address
    first.close()
    second.close()


# --- pauses ---


def test_a_pause_leaves_newcomers_in_the_queue_until_it_is_over(listener: Listener, loop: EventLoop) -> None:
    listener.acceptor.pause(0.05)
    assert listener.acceptor.is_listening
    begin = time.monotonic()
    with listener.connect(), listener.connect():
        listener.run_until_accepted(2)
    assert time.monotonic() - begin >= 0.05


def test_a_pause_inside_the_callback_ends_accepting_at_once(listener: Listener, loop: EventLoop) -> None:
    def accept_one(fd: int, peer: Address) -> None:
        listener.accepted.append((fd, peer))
        listener.acceptor.pause(0.03 if len(listener.accepted) < 4 else 100.0)
        moments.append(time.monotonic())

    moments: list[float] = []
    listener.acceptor.new_connection_callback = accept_one
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(listener.connect())
        listener.run_until_accepted(4)
    assert all(later - earlier >= 0.03 for earlier, later in itertools.pairwise(moments))
    assert loop.timer_count == 1


def test_the_longer_of_two_pauses_counts(listener: Listener, loop: EventLoop) -> None:
    for pauses in ((0.06, 0.01), (0.01, 0.06)):
        count = len(listener.accepted)
        begin = time.monotonic()
        for seconds in pauses:
            listener.acceptor.pause(seconds)
        assert loop.timer_count == 1
        with listener.connect():
            listener.run_until_accepted(count + 1)
        assert time.monotonic() - begin >= 0.06


def test_a_pause_is_a_number_of_seconds(listener: Listener, loop: EventLoop) -> None:
    for seconds in (-1.0, math.nan):
        with pytest.raises(ValueError, match="0 or more"):
            listener.acceptor.pause(seconds)
    listener.acceptor.pause(0.0)
    assert loop.timer_count == 0


def test_an_acceptor_that_does_not_listen_has_nothing_to_pause(loop: EventLoop) -> None:
    listener = Listener(loop)
    listener.acceptor.pause(100.0)
    assert loop.timer_count == 0
    listener.acceptor.listen()
    with listener.connect():
        listener.run_until_accepted(1)
    listener.close()
    listener.acceptor.pause(100.0)
    assert loop.timer_count == 0


def test_listen_does_not_end_a_pause(listener: Listener) -> None:
    begin = time.monotonic()
    listener.acceptor.pause(0.05)
    listener.acceptor.listen()
    with listener.connect():
        listener.run_until_accepted(1)
    assert time.monotonic() - begin >= 0.05


def test_close_during_a_pause_leaves_no_timer(listener: Listener, loop: EventLoop) -> None:
    listener.acceptor.pause(100.0)
    listener.acceptor.close()
    assert loop.timer_count == 0
    assert not listener.acceptor.is_listening


def test_a_pause_in_another_thread_is_refused(loop_thread: EventLoop) -> None:
    acceptor = Acceptor(loop_thread, InetAddress.loopback(0))
    for use in (lambda: acceptor.pause(1.0), acceptor.drain_queue):
        with pytest.raises(RuntimeError, match="belongs to thread 'loop'"):
            use()
    call_in_loop(loop_thread, acceptor.close)


# --- emptying the queue ---


def test_drain_queue_accepts_all_who_are_in_it(listener: Listener) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(listener.connect())
        listener.wait_for_newcomers(150)
        assert listener.acceptor.drain_queue() == 150
        assert len(listener.accepted) == 150
        assert listener.acceptor.drain_queue() == 0


def test_drain_queue_does_not_stop_at_a_pause(listener: Listener) -> None:
    def accept(fd: int, peer: Address) -> None:
        listener.accepted.append((fd, peer))
        listener.acceptor.pause(100.0)

    listener.acceptor.new_connection_callback = accept
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(listener.connect())
        listener.wait_for_newcomers(10)
        assert listener.acceptor.drain_queue() == 10


def test_drain_queue_stops_when_the_callback_closes(listener: Listener) -> None:
    def accept_one(fd: int, peer: Address) -> None:
        listener.accepted.append((fd, peer))
        listener.acceptor.close()

    listener.acceptor.new_connection_callback = accept_one
    with listener.connect(), listener.connect():
        listener.wait_for_newcomers(2)
        assert listener.acceptor.drain_queue() == 1
    assert listener.acceptor.drain_queue() == 0


@pytest.mark.provokes_errors("of a newcomer")
def test_drain_queue_goes_on_after_a_callback_that_raises(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    def fail(fd: int, peer: Address) -> None:
        listener.accepted.append((fd, peer))
        raise ZeroDivisionError("of a newcomer")

    listener.acceptor.new_connection_callback = fail
    with listener.connect(), listener.connect():
        listener.wait_for_newcomers(2)
        assert listener.acceptor.drain_queue() == 2
    assert caplog.text.count("ZeroDivisionError: of a newcomer") == 2


def test_drain_queue_of_what_does_not_listen_accepts_nobody(loop: EventLoop) -> None:
    acceptor = Acceptor(loop, InetAddress.loopback(0))
    assert acceptor.drain_queue() == 0
    acceptor.close()


# --- sockets that are bound already ---


def bound_socket(is_listening: bool) -> Socket:
    sock = Socket.create(socket.AF_INET)
    sock.bind(InetAddress.loopback(0))
    if is_listening:
        sock.listen(7)
    return sock


@pytest.mark.parametrize("is_listening", [True, False])
def test_a_socket_that_is_bound_already_is_taken_over(loop: EventLoop, is_listening: bool) -> None:
    sock = bound_socket(is_listening)
    os.set_blocking(sock.fd, True)
    os.set_inheritable(sock.fd, True)
    address = sock.local_address
    acceptor = Acceptor(loop, None, listening=sock, no_delay=True)
    assert acceptor.socket is sock
    assert acceptor.address == address
    assert not os.get_blocking(sock.fd)
    assert not os.get_inheritable(sock.fd)
    assert not acceptor.is_listening
    accepted: list[int] = []
    acceptor.new_connection_callback = lambda fd, _: (accepted.append(fd), loop.quit())
    acceptor.listen()
    with socket.create_connection(address.sockaddr, timeout=PATIENCE_S):
        loop.run()
        with socket.socket(fileno=accepted[0]) as copy:
            assert copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert copy.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    acceptor.close()
    assert sock.fd == -1


def test_the_others_who_hold_the_socket_go_on_when_one_closes(loop: EventLoop) -> None:
    sock = bound_socket(is_listening=True)
    with socket.socket(fileno=os.dup(sock.fd)) as other:
        acceptor = Acceptor(loop, None, listening=sock)
        acceptor.listen()
        acceptor.close()
        with socket.create_connection(other.getsockname(), timeout=PATIENCE_S):
            other.settimeout(PATIENCE_S)
            other.accept()[0].close()


def test_what_cannot_be_taken_over_is_refused_and_stays_with_its_owner(loop: EventLoop) -> None:
    unbound = Socket.create(socket.AF_INET)
    unnamed = Socket.create(socket.AF_UNIX)
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        wrong_kind = Socket(os.dup(datagrams.fileno()))
    for sock in (unbound, unnamed, wrong_kind):
        with pytest.raises(ValueError, match=r"is not bound|is no stream socket"):
            Acceptor(loop, None, listening=sock)
        os.fstat(sock.fd)
        sock.close()
        with pytest.raises(OSError):
            Acceptor(loop, None, listening=sock)


def test_what_does_not_go_with_a_bound_socket_is_refused(loop: EventLoop) -> None:
    with contextlib.closing(bound_socket(is_listening=True)) as sock:
        with pytest.raises(ValueError, match="bound already"):
            Acceptor(loop, InetAddress.loopback(0), listening=sock)
        with pytest.raises(ValueError, match="bound already"):
            Acceptor(loop, None, listening=sock, reuse_port=True)
        with pytest.raises(ValueError, match="bound already"):
            Acceptor(loop, None, listening=sock, unix_mode=0o600)
    with pytest.raises(TypeError, match="must be an InetAddress or UnixAddress, got None"):
        Acceptor(loop, None)


# --- errors ---


def test_a_port_in_use_is_reported_where_the_acceptor_is_made(listener: Listener, loop: EventLoop) -> None:
    with pytest.raises(OSError, match=f"cannot bind {listener.acceptor.address}") as caught:
        Acceptor(loop, listener.acceptor.address)
    assert caught.value.errno == errno.EADDRINUSE


def test_an_address_that_is_not_ours_is_named(loop: EventLoop) -> None:
    with pytest.raises(OSError, match=r"192\.0\.2\.1:0") as caught:
        Acceptor(loop, InetAddress("192.0.2.1", 0))
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_listen_in_another_thread_is_refused(loop_thread: EventLoop) -> None:
    acceptor = Acceptor(loop_thread, InetAddress.loopback(0))
    with pytest.raises(RuntimeError, match="belongs to thread 'loop'"):
        acceptor.listen()
    assert not acceptor.is_listening
    loop_thread.run_in_loop(acceptor.close)
    eventually(lambda: acceptor.socket.fd < 0)


def test_an_acceptor_that_could_not_be_made_closes_no_descriptor_of_others() -> None:
    # In a process of its own: what is closed here by mistake is descriptor 0.
    code = """
import gc, os
from pymuduo import Acceptor, EventLoop, InetAddress
with EventLoop() as loop:
    for args in ((), (loop,), (1, 2), (loop, InetAddress("192.0.2.1", 0))):
        try:
            Acceptor(*args)
        except (TypeError, AttributeError, OSError):
            pass
        gc.collect()
        os.fstat(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- close ---


def test_close_refuses_newcomers_and_twice_is_harmless(listener: Listener) -> None:
    listener.acceptor.close()
    listener.acceptor.close()
    assert not listener.acceptor.is_listening
    with pytest.raises(ConnectionRefusedError):
        listener.connect()


def test_close_resets_those_still_in_the_queue(listener: Listener) -> None:
    with listener.connect() as client:
        listener.acceptor.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert listener.accepted == []


def test_close_inside_the_callback_leaves_the_rest_of_the_queue_alone(listener: Listener, loop: EventLoop) -> None:
    def accept_one(fd: int, peer: Address) -> None:
        listener.accepted.append((fd, peer))
        listener.acceptor.close()

    listener.acceptor.new_connection_callback = accept_one
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(listener.connect()) for _ in range(10)]
        run_for(loop, 0.02)
        assert len(listener.accepted) == 1
        refused = 0
        for client in clients:
            if client.getsockname()[1] == listener.accepted[0][1].port:
                continue
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            refused += 1
        assert refused == 9


def test_an_acceptor_left_open_does_not_keep_its_loop_from_closing() -> None:
    with EventLoop() as loop:
        acceptor = Acceptor(loop, InetAddress.loopback(0))
        acceptor.listen()
    acceptor.close()


def test_repr_tells_address_and_state(loop: EventLoop) -> None:
    acceptor = Acceptor(loop, InetAddress.loopback(0))
    assert repr(acceptor) == f"<Acceptor {acceptor.address} idle>"
    acceptor.listen()
    assert repr(acceptor) == f"<Acceptor {acceptor.address} listening>"
    acceptor.close()
    assert repr(acceptor) == f"<Acceptor {acceptor.address} closed>"


# --- the descriptor table is full ---

FULL = """
import json, logging, os, resource, socket, threading, time
from pymuduo import Acceptor, EventLoopThread, InetAddress

records = []
class Keep(logging.Handler):
    def emit(self, record):
        records.append((time.monotonic(), record.getMessage()))
logging.getLogger("pymuduo").addHandler(Keep())

resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
loop = EventLoopThread().start_loop()
accepted = []
acceptor = None

def in_loop(fn):
    done, result = threading.Event(), []
    loop.run_in_loop(lambda: (result.append(fn()), done.set()))
    assert done.wait(20), "the loop did not run the call"
    return result[0]

def make():
    global acceptor
    acceptor = Acceptor(loop, InetAddress.loopback(0))
    acceptor.new_connection_callback = lambda fd, peer: accepted.append(fd)
    acceptor.listen()

in_loop(make)

def fill():
    held = []
    while True:
        try:
            held.append(os.dup(0))
        except OSError:
            return held

def free(held):
    while held:
        os.close(held.pop())

def eventually(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return bool(condition())

def sockets(count):
    return [socket.socket() for _ in range(count)]

def connect(*clients):
    for client in clients:
        client.settimeout(20)
        client.connect(acceptor.address.sockaddr)

def ended(client):
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
"""


def run_full(code: str) -> dict[str, Any]:
    """Run *code* in a process of its own whose descriptor table it fills; return what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", FULL + code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_with_a_full_table_newcomers_are_closed_not_left_hanging() -> None:
    result = run_full("""
clients = sockets(3)
held = fill()
connect(*clients)
closed = eventually(lambda: all([ended(client) for client in clients]))
free(held)
print(json.dumps({"closed": closed, "accepted": len(accepted)}))
""")
    assert result == {"closed": True, "accepted": 0}


def test_with_a_full_table_the_loop_neither_spins_nor_floods_the_log() -> None:
    result = run_full("""
clients = sockets(40)
held = fill()
iterations = in_loop(lambda: loop.iteration)
before = resource.getrusage(resource.RUSAGE_SELF)
begin = time.monotonic()
connect(*clients)
time.sleep(2.5)
after = resource.getrusage(resource.RUSAGE_SELF)
used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
iterations = in_loop(lambda: loop.iteration) - iterations
seconds = time.monotonic() - begin
free(held)
gaps = [b[0] - a[0] for a, b in zip(records, records[1:])]
print(json.dumps({"seconds": seconds, "cpu": used, "iterations": iterations, "listening": acceptor.is_listening,
                  "messages": [message for _, message in records], "gaps": gaps, "address": str(acceptor.address)}))
""")
    assert result["cpu"] < 0.2 * result["seconds"]  # a loop that spins uses all of them
    assert result["iterations"] < 80 * result["seconds"]
    assert 1 <= len(result["messages"]) <= 1 + result["seconds"]
    assert all(gap >= 0.99 for gap in result["gaps"])
    assert all(result["address"] in message and "Too many open files" in message for message in result["messages"])
    assert result["listening"]


def test_service_resumes_when_descriptors_come_free() -> None:
    result = run_full("""
refused, clients, last = sockets(1), sockets(10), sockets(1)
held = fill()
connect(*refused)
turned_away = eventually(lambda: ended(refused[0]))
free(held)
connect(*clients)
resumed = eventually(lambda: len(accepted) == 10)
for fd in accepted:
    os.write(fd, b"x")
answers = {client.recv(1) for client in clients}
held = fill()  # and again: the reserve is back
connect(*last)
again = eventually(lambda: ended(last[0]))
free(held)
print(json.dumps({"turned_away": turned_away, "resumed": resumed, "answered": answers == {b"x"}, "again": again}))
""")
    assert result == {"turned_away": True, "resumed": True, "answered": True, "again": True}


def test_the_reserve_taken_by_somebody_else_comes_back() -> None:
    result = run_full("""
first, clients, last = sockets(5), sockets(5), sockets(1)
held = fill()
# Whoever is turned away makes a descriptor free for a moment: take it from the acceptor, as any thread might.
grabbed = []
stop = threading.Event()
def grab():
    while not stop.is_set():
        try:
            grabbed.append(os.dup(0))
        except OSError:
            time.sleep(0)
thread = threading.Thread(target=grab, daemon=True)
thread.start()
connect(*first)
time.sleep(0.5)
stop.set()
thread.join()
free(held)
free(grabbed)
before = len(accepted)
connect(*clients)
resumed = eventually(lambda: len(accepted) >= before + 5)
held = fill()
connect(*last)
closed = eventually(lambda: ended(last[0]))
free(held)
print(json.dumps({"resumed": resumed, "closed": closed}))
""")
    assert result == {"resumed": True, "closed": True}


def test_close_during_the_pause_ends_it() -> None:
    result = run_full("""
clients = sockets(20)
held = fill()
for client in clients:
    connect(client)
    eventually(lambda: ended(client))
    listening, timers_before = in_loop(lambda: (acceptor.is_listening, loop.timer_count, acceptor.close()))[:2]
    if timers_before:
        break
    in_loop(make)  # we came when the pause was over
free(held)
timers = in_loop(lambda: loop.timer_count)
print(json.dumps({"listening": listening, "before": timers_before, "timers": timers, "after": acceptor.is_listening}))
""")
    assert result == {"listening": True, "before": 1, "timers": 0, "after": False}


def test_made_without_a_descriptor_for_its_reserve_it_accepts_as_soon_as_there_are_some() -> None:
    result = run_full("""
client, = sockets(1)
in_loop(acceptor.close)
held = fill()
free([held.pop()])
in_loop(make)  # one for the socket, none for the reserve
connect(client)
reported = eventually(lambda: records)
free(held)
print(json.dumps({"reported": reported, "accepted": eventually(lambda: accepted)}))
""")
    assert result == {"reported": True, "accepted": True}


def test_a_reserve_missed_at_first_is_made_good_when_a_newcomer_is_accepted() -> None:
    result = run_full("""
client, last = sockets(2)
in_loop(acceptor.close)
held = fill()
free([held.pop()])
in_loop(make)  # one for the socket, none for the reserve
free(held)
connect(client)
served = eventually(lambda: accepted)
held = fill()
connect(last)
closed = eventually(lambda: ended(last))
free(held)
print(json.dumps({"served": served, "closed": closed}))
""")
    assert result == {"served": True, "closed": True}


def test_drain_queue_ends_where_the_table_is_full_and_the_rest_is_served_later() -> None:
    result = run_full("""
clients = sockets(5)
in_loop(lambda: acceptor.pause(100.0))
held = fill()
connect(*clients)
free([held.pop(), held.pop()])
drained = in_loop(acceptor.drain_queue)
free(held)
rest = in_loop(acceptor.drain_queue)
print(json.dumps({"drained": drained, "rest": rest, "accepted": len(accepted)}))
""")
    assert result == {"drained": 2, "rest": 3, "accepted": 5}
