"""Ten thousand lives leave nothing behind, and a full descriptor table is survived."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import socket
import subprocess
import sys
from collections import Counter

import pytest

from certificates import NAME, client_context, server_context
from conftest import (
    PATIENCE_S,
    ServerThread,
    call_in_loop,
    eventually,
    open_descriptors,
    receive_exactly,
    reset,
    running_threads,
)
from pymuduo import TcpClient, TcpConnection

LIVES = int(os.environ.get("PYMUDUO_LIVES", "10000"))
NOISE = 200  # blocks of memory that come and go with the interpreter's own work; some 20 are usual


def one_plain_life(server: ServerThread, number: int) -> None:
    client = server.connect()
    if number % 3 == 0:
        client.sendall(b"hello")
        assert receive_exactly(client, 5) == b"hello"
    if number % 4 == 1:
        reset(client)
    else:
        client.close()


def one_tls_life(server: ServerThread, number: int) -> None:
    with server.connect() as plain:
        if number % 4 == 1:
            plain.sendall(b"\x16\x03\x01")  # a handshake that is never finished
            return
        with trusting().wrap_socket(plain, server_hostname=NAME) as client:
            client.sendall(b"hello" * 20_000)  # more than the kernel takes at once
            assert receive_exactly(client, 100_000) == b"hello" * 20_000
            if number % 4 == 2:
                reset(client)


trusting = functools.cache(client_context)


def objects_of_ours() -> Counter[str]:
    """Return how many objects of each of the library's classes there are, as far as the collector knows them."""
    gc.collect()
    kinds = Counter(type(one) for one in gc.get_objects())
    return Counter({kind.__qualname__: count for kind, count in kinds.items() if kind.__module__.startswith("pymuduo")})


@pytest.mark.parametrize(("threads", "way"), [(0, "plain"), (2, "plain"), (2, "tls")])
@pytest.mark.timeout(600)
def test_10000_connects_and_disconnects_leave_nothing_behind(serve, threads, way):
    """As many as ``PYMUDUO_LIVES`` says, if it says so; of TLS, which takes its time, a twentieth."""
    lives, live = (LIVES // 20, one_tls_life) if way == "tls" else (LIVES, one_plain_life)
    server = serve(
        threads, message_callback=lambda c, b, t: c.send(b), ssl_context=server_context() if way == "tls" else None
    )

    def live_all(count: int) -> None:
        for number in range(count):
            live(server, number)
        eventually(lambda: server.server.connection_count == 0)
        for loop in server.server.thread_pool.loops():
            call_in_loop(loop, lambda: None)  # they have been destroyed in their own loops too

    live_all(lives // 10)  # what is made once has been made then
    descriptors, running, objects = open_descriptors(), running_threads(), objects_of_ours()
    blocks = sys.getallocatedblocks()

    live_all(lives)
    eventually(lambda: open_descriptors() == descriptors)
    # The last functor may still be on its way out of its loop's thread.
    eventually(lambda: objects_of_ours() == objects)
    assert running_threads() == running
    # The collector does not know what refers to nothing, such as a compiled Buffer or Socket; but each takes memory.
    eventually(lambda: sys.getallocatedblocks() < blocks + NOISE, "memory of some lives is left")


class AllocatorFigures(ctypes.Structure):
    """What the C library tells of its memory: ``struct mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "used", "free", "keepcost")
    ]


@pytest.mark.measures_memory
@pytest.mark.timeout(600)
def test_a_client_that_comes_back_in_tls_costs_no_memory(serve):
    """Not even such as the interpreter does not count, as that of an SSL library."""
    figures = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if figures is None:
        pytest.skip("this C library does not tell what is in use")
    figures.restype = AllocatorFigures
    lives, most = 150, 256 * 1024
    ended: list[int] = []
    used: list[int] = []
    server = serve(ssl_context=server_context(), message_callback=lambda c, b, t: c.send(b))
    client = TcpClient(server.loop, server.server.address, "again", ssl_context=trusting(), server_hostname=NAME)

    def on_connection(connection: TcpConnection) -> None:
        if connection.connected:
            connection.send(b"!")
            return
        ended.append(1)
        if len(ended) % lives == 0:
            gc.collect()
            used.append(figures().used)
        if len(used) < 2:
            client.connect()

    client.connection_callback = on_connection
    client.message_callback = lambda c, b, t: c.shutdown()  # what the answer stands behind has come: tickets
    with client:
        client.connect()
        for number in range(0, 2 * lives, 50):
            eventually(lambda number=number: len(ended) > number)
        eventually(lambda: len(used) == 2)
    assert used[1] - used[0] < most


FULL_TABLE = """
import resource, select, socket, sys, threading, time, logging
from pymuduo import EventLoop, EventLoopThread, InetAddress, TcpServer

records = []
class Count(logging.Handler):
    def emit(self, record):
        records.append(record.getMessage())
logging.getLogger("pymuduo.acceptor").addHandler(Count())

LIMIT = 60
with EventLoopThread(name="base") as base:
    ready = threading.Event()
    holder = []
    def make():
        server = TcpServer(base, InetAddress.loopback(0), "full")
        server.thread_num = int(sys.argv[1])
        server.message_callback = lambda c, b, t: c.send(b)
        server.start()
        holder.append(server)
        ready.set()
    base.run_in_loop(make)
    assert ready.wait(20)
    server = holder[0]
    # The clients live in this process too, so their descriptors are made while the limit is high, and moved above it.
    import fcntl
    def client():
        sock = socket.socket()
        high = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 1000)
        sock.close()
        sock = socket.socket(fileno=high)
        sock.settimeout(20)
        return sock
    clients = [client() for _ in range(100)]
    waiting = {s.fileno(): s for s in clients}
    answered = select.epoll()  # poll would be refused: more descriptors than the limit to come
    for fd in waiting:
        answered.register(fd, 0)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, hard))
    for sock in clients:
        sock.connect(("127.0.0.1", server.address.port))
    served = []
    for sock in clients:
        sock.sendall(b"x")
    # Each is either served or turned away, and the turning away takes no busy loop.
    cpu = time.process_time()
    begin = time.monotonic()
    answers = {}
    for fd in waiting:
        answered.modify(fd, select.EPOLLIN)
    while len(answers) < 60 and time.monotonic() - begin < 20:
        for fd, _ in answered.poll(0.1):
            try:
                answers[fd] = waiting[fd].recv(1)
            except ConnectionResetError:
                answers[fd] = b""
            answered.unregister(fd)
    wall, cpu = time.monotonic() - begin, time.process_time() - cpu
    served = [s for s in clients if answers.get(s.fileno()) == b"x"]
    turned_away = [s for s in clients if answers.get(s.fileno()) == b""]
    assert 10 < len(served) < LIMIT, len(served)
    assert turned_away, "nobody was told that the table is full"
    assert wall > 0.2, wall
    assert cpu < wall / 2, f"busy: {cpu:.2f} s of CPU in {wall:.2f} s"
    assert 1 <= len(records) <= wall + 2, records
    # Service resumes when descriptors come free.
    for sock in clients:
        sock.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    deadline = time.monotonic() + 20
    while server.connection_count and time.monotonic() < deadline:
        time.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, hard))
    with socket.create_connection(("127.0.0.1", server.address.port), timeout=20) as sock:
        sock.sendall(b"y")
        assert sock.recv(1) == b"y"
    server.stop(0)
    assert server.join(20)
print("survived", len(served), len(turned_away), f"{cpu:.3f}/{wall:.3f}")
"""


@pytest.mark.parametrize("threads", ["0", "2"])
def test_a_full_descriptor_table_spins_nothing_and_service_resumes(threads):
    done = subprocess.run(
        [sys.executable, "-c", FULL_TABLE, threads], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("survived")


def test_a_flood_of_connects_is_accepted_whole(serve):
    """More newcomers at once than one event accepts."""
    server = serve(2, message_callback=lambda c, b, t: c.send(b))
    clients: list[socket.socket] = []
    for _ in range(1000):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", server.port))
        clients.append(client)
    eventually(lambda: server.server.connection_count == 1000)
    for client in clients:
        client.settimeout(PATIENCE_S)
        client.sendall(b"x")
    for client in clients:
        assert receive_exactly(client, 1) == b"x"
        client.close()
    eventually(lambda: server.server.connection_count == 0)
