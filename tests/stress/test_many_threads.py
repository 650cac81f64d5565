"""Every door hammered from eight threads, with the interpreter switching threads as often as it can."""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from conftest import PATIENCE_S, call_in_loop, eventually, receive_all, receive_exactly
from pymuduo import (
    Buffer,
    ConnectionLimits,
    ConnectionState,
    IdleTimeouts,
    InetAddress,
    ProxyProtocol,
    TcpConnection,
    encode_proxy_header,
)

THREADS = 8


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def in_threads(work: Callable[[int], None]) -> None:
    """Run ``work(i)`` in eight threads at once; raise what one of them raised."""
    start = threading.Barrier(THREADS)
    errors: list[BaseException] = []

    def run(i: int) -> None:
        start.wait(PATIENCE_S)
        try:
            work(i)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("io_threads", [0, 1])
def test_sends_from_eight_threads_keep_their_order_and_lose_nothing(serve, io_threads):
    count = 2000
    up = threading.Event()
    server = serve(io_threads, connection_callback=lambda c: up.set())
    with server.connect() as client:
        assert up.wait(PATIENCE_S)
        connection = server.server.connections[0]

        def send(i: int) -> None:
            for n in range(count):
                record = b"%d %06d\n" % (i, n)
                data = (record, bytearray(record), memoryview(record), Buffer(record))[n % 4]
                assert connection.send(data)

        sender = threading.Thread(target=in_threads, args=(send,))
        sender.start()
        stream = receive_exactly(client, THREADS * count * 9)
        sender.join()
    records = [line.split() for line in stream.splitlines()]
    for i in range(THREADS):
        assert [int(n) for who, n in records if int(who) == i] == list(range(count))


def test_a_shutdown_behind_the_sends_of_its_thread_loses_none_of_them(serve):
    newcomers: queue.Queue[TcpConnection] = queue.Queue()
    server = serve(2, connection_callback=lambda c: newcomers.put(c) if c.connected else None)
    for _ in range(50):
        with server.connect() as client:
            connection = newcomers.get(timeout=PATIENCE_S)

            def send_and_shut_down(connection: TcpConnection = connection) -> None:
                for n in range(100):
                    assert connection.send(b"%04d" % n)
                connection.shutdown()
                assert not connection.send(b"late")

            thread = threading.Thread(target=send_and_shut_down)
            thread.start()
            assert receive_all(client) == b"".join(b"%04d" % n for n in range(100))
            thread.join()


def test_every_door_at_once_while_peers_come_and_go(serve):
    """No exception, no hang, no connection left: whatever the order in which the calls arrive."""
    events: dict[str, list[bool]] = {}

    def on_connection(connection: TcpConnection) -> None:
        events.setdefault(connection.name, []).append(connection.connected)

    server = serve(2, connection_callback=on_connection, message_callback=lambda c, b, t: c.send(b))

    def work(i: int) -> None:
        for n in range(60):
            with server.connect() as client:
                client.sendall(b"hello")
                for connection in server.server.connections:
                    door = (n + i) % 7
                    if door == 0:
                        connection.send(b"x" * 1000)
                    elif door == 1:
                        connection.stop_read()
                    elif door == 2:
                        connection.start_read()
                    elif door == 3:
                        connection.shutdown()
                    elif door == 4:
                        connection.force_close()
                    elif door == 5:
                        connection.force_close_with_delay(0.001)
                    else:
                        assert connection.state in ConnectionState
                        assert connection.name.startswith("test-")

    in_threads(work)
    # Those whose reading was stopped with bytes unread wait for start_read: let all of them go.
    server.server.stop(0)
    assert server.server.join(PATIENCE_S)
    assert server.server.connection_count == 0
    assert all(history == [True, False] for history in events.values())


def test_functors_and_timers_from_eight_threads_all_run(loop_thread):
    count = 3000
    ran: list[tuple[int, int]] = []
    fired: list[int] = []

    def work(i: int) -> None:
        for n in range(count):
            loop_thread.queue_in_loop(ran.append, (i, n))
            if n % 10 == 0:
                timer = loop_thread.run_after(0.0, fired.append, 1)
                if n % 20 == 0:
                    loop_thread.cancel(timer)

    in_threads(work)
    eventually(lambda: len(ran) == THREADS * count)
    for i in range(THREADS):
        assert [n for who, n in ran if who == i] == list(range(count))
    eventually(lambda: call_in_loop(loop_thread, lambda: loop_thread.timer_count) == 0)
    assert len(fired) >= THREADS * count // 20


def test_stop_from_eight_threads_at_once(serve):
    for _ in range(10):
        server = serve(2, message_callback=lambda c, b, t: c.send(b))
        clients = [server.connect() for _ in range(10)]
        in_threads(lambda i, server=server: server.server.stop(0 if i % 2 else 0.01))  # type: ignore[misc]
        assert server.server.join(PATIENCE_S)
        for client in clients:
            client.close()


def test_broadcast_from_eight_threads_reaches_everyone_in_order(serve):
    server = serve(2)
    clients = [server.connect() for _ in range(20)]
    eventually(lambda: server.server.connection_count == 20)
    receivers: list[socket.socket] = clients
    count = 200

    def broadcast(i: int) -> None:
        for n in range(count):
            message = b"%d %04d\n" % (i, n)
            for connection in server.server.connections:
                assert connection.send(message)

    in_threads(broadcast)
    for client in receivers:
        lines = receive_exactly(client, THREADS * count * 7).splitlines()
        for i in range(THREADS):
            assert [int(line[2:]) for line in lines if line.startswith(b"%d " % i)] == list(range(count))
        client.close()


def test_addresses_may_be_read_while_a_load_balancer_says_what_they_are(serve):
    server = serve(2, proxy_protocol=ProxyProtocol(["127.0.0.1"]))
    header = encode_proxy_header(InetAddress("192.0.2.7", 1), InetAddress("192.0.2.8", 2))
    are_done = threading.Event()

    def come_and_go() -> None:
        for _ in range(300):
            with server.connect() as client:
                client.sendall(header)
        are_done.set()

    def read(i: int) -> None:
        while not are_done.is_set():
            for connection in server.server.connections:
                assert connection.peer_address.ip in {"127.0.0.1", "192.0.2.7"}
                assert connection.local_address.ip in {"127.0.0.1", "192.0.2.8"}

    visitor = threading.Thread(target=come_and_go)
    visitor.start()
    in_threads(read)
    visitor.join()


@pytest.mark.parametrize("acceptors", ["one", "per-loop"])
def test_a_servers_settings_may_be_replaced_while_connections_come(serve, acceptors):
    """As a certificate is renewed. Without one no handshake succeeds, but each connection takes all settings."""
    server = serve(2, acceptors=acceptors, ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    are_done = threading.Event()

    def come_and_go() -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(are_done.set)
            for _ in range(300):
                with server.connect() as client:
                    client.sendall(b"no hello")

    def replace() -> None:
        made = server.server
        made.ssl_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.limits = ConnectionLimits(max_connections=10_000)
        made.idle_timeouts = IdleTimeouts(read_s=3600)
        made.connection_callback = lambda connection: None
        made.message_callback = lambda connection, buffer, when: None
        made.handshake_failed_callback = lambda connection, error: None

    visitor = threading.Thread(target=come_and_go)
    visitor.start()
    while not are_done.is_set():
        call_in_loop(server.loop, replace)
    visitor.join()
    eventually(lambda: server.server.connection_count == 0)
