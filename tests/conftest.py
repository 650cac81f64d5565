"""What the tests share: a loop in a thread, a server on it, plain blocking clients, and a bounded wait.

No test sleeps to synchronise: it waits for a condition (``eventually``), an event or a reply, all bounded.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import re
import shutil
import signal
import socket
import struct
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest
from hypothesis import HealthCheck, settings

from pymuduo import EventLoop, EventLoopThread, InetAddress, TcpServer

T = TypeVar("T")

CONSTRUCTOR_SETTINGS = ("reuse_port", "no_delay", "ssl_context", "listening", "acceptors", "unix_mode")
IS_FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
SLOWNESS = re.compile(r" held the loop up for \d+ ms$")  # what a loop says of a machine that is busy with other things
PATIENCE_S = 20.0  # far more than anything here takes; a test that reaches it has failed

# A machine that does other things, too, holds a test up whenever it likes.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


def is_no_word_of_slowness(record: logging.LogRecord) -> bool:
    return SLOWNESS.search(record.getMessage()) is None


# For the same reason nobody hears of slow callbacks but who asks for ``log_of_slowness``.
logging.getLogger("pymuduo.event_loop").addFilter(is_no_word_of_slowness)


def pytest_configure(config: pytest.Config) -> None:
    # What a shell starts in the background ignores Ctrl-C, and so does all that it starts: tests of it would hang.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what pytest has made so far out of every later collection, which the fixtures ask for often."""
    gc.collect()
    gc.freeze()


def eventually(condition: Callable[..., T], message: str = "") -> T:
    """Return the first true result of *condition*, asked again and again for at most ``PATIENCE_S``."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"never came true: {message or condition}; last result {result!r}")
        time.sleep(0.001)


def call_in_loop(loop: EventLoop, fn: Callable[..., T], *args: Any) -> T:
    """Call ``fn(*args)`` in the loop's thread, wait, and return its result or raise its exception."""
    done = threading.Event()
    result: list[T] = []
    error: list[BaseException] = []

    def call() -> None:
        try:
            result.append(fn(*args))
        except BaseException as e:
            error.append(e)
        finally:
            done.set()

    loop.run_in_loop(call)
    assert done.wait(PATIENCE_S), "the loop did not run the call"
    if error:
        raise error[0]
    return result[0]


def lacking(what: str) -> NoReturn:
    """Skip the test for a reason that lies outside; ``PYMUDUO_ALL_CLIENTS`` makes a failure of it."""
    if os.environ.get("PYMUDUO_ALL_CLIENTS"):
        pytest.fail(what)
    pytest.skip(what)


def installed(program: str, *folders: str) -> str:
    """Return the path of a program that is not ours (from *folders* too), or end the test: see ``lacking``.

    ``.ci/install-clients`` installs them all.
    """
    path = shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *folders]))
    if path is None:
        lacking(f"{program} is not installed")
    return path


def imported(module: str) -> Any:
    """Return a module that is not ours, and skip the test if this Python can't have it (see ``installed``)."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        if os.environ.get("PYMUDUO_ALL_CLIENTS"):
            raise
        pytest.skip(f"{module} is not installed", allow_module_level=True)


def run_at_once(functions: Sequence[Callable[[], object]], patience_s: float | None = PATIENCE_S) -> None:
    """Call functions at once, each in a thread, and wait, for each at most so long; raise what one of them raised."""
    start = threading.Barrier(len(functions))
    errors: list[BaseException] = []

    def run(function: Callable[[], object]) -> None:
        start.wait(PATIENCE_S)
        try:
            function()
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience_s)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads)


def waiting_newcomers(port: int) -> int:
    """Return how many are in the queues of the sockets that listen on a port (IPv4): connected, and not accepted.

    To the client it may be connected a moment before it is there.
    """
    count = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, queues, *_ = line.split()
        if state == "0A" and int(local.partition(":")[2], 16) == port:
            count += int(queues.partition(":")[2], 16)
    return count


def open_descriptors() -> set[int]:
    """Return the descriptors this process has open, without the one that it takes to find out."""
    return {int(name) for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")}


def describe_descriptor(fd: int) -> str:
    """Return what a descriptor is open on."""
    try:
        return f"{fd}: {os.readlink(f'/proc/self/fd/{fd}')}"
    except OSError:
        return f"{fd}: closed meanwhile"


def own_sockets() -> Iterator[socket.socket]:
    """Yield a duplicate of every TCP socket of this process; each is closed when the next one is asked for."""
    for fd in open_descriptors():
        try:
            if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                continue
            copy = socket.socket(fileno=os.dup(fd))
        except OSError:
            continue  # closed meanwhile
        with copy:
            if copy.family in (socket.AF_INET, socket.AF_INET6):
                yield copy


class ServerThread:
    """A TcpServer whose base loop runs in a thread of its own, so that the test can be a blocking client."""

    def __init__(self, thread_num: int = 0, **settings: Any) -> None:
        self._thread = EventLoopThread(name="base")
        self.loop = self._thread.start_loop()
        constructor = {k: settings.pop(k) for k in CONSTRUCTOR_SETTINGS if k in settings}
        address = settings.pop("address", InetAddress.loopback(0))
        self.server = call_in_loop(self.loop, lambda: TcpServer(self.loop, address, "test", **constructor))
        self.server.thread_num = thread_num
        for name, value in settings.items():
            setattr(self.server, name, value)
        self.server.start()
        call_in_loop(self.loop, lambda: None)  # listening

    @property
    def port(self) -> int:
        return self.server.address.port

    def connect(self) -> socket.socket:
        """Return a connected blocking client with a time limit."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def close(self) -> None:
        self.server.stop(0)
        assert self.server.join(PATIENCE_S), "the server did not stop"
        assert self._thread.stop(PATIENCE_S), "the base loop did not end"


@pytest.fixture
def log_of_slowness() -> Iterator[None]:
    """Let the log say what has held a loop up."""
    log = logging.getLogger("pymuduo.event_loop")
    log.removeFilter(is_no_word_of_slowness)
    yield
    log.addFilter(is_no_word_of_slowness)


@pytest.fixture
def serve() -> Iterator[Callable[..., ServerThread]]:
    """Return a function that starts servers: ``serve(thread_num=0, message_callback=…)``."""
    with contextlib.ExitStack() as stack:

        def start(thread_num: int = 0, **settings: Any) -> ServerThread:
            server = ServerThread(thread_num, **settings)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture
def loop_thread() -> Iterator[EventLoop]:
    """Return a loop that runs in a thread of its own."""
    with EventLoopThread(name="loop") as loop:
        yield loop


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    """Return a loop of the test's own thread; the test runs it."""
    with EventLoop() as loop:
        yield loop


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return a connected non-blocking pair of sockets."""
    one, other = socket.socketpair()
    one.setblocking(False)
    other.setblocking(False)
    with one, other:
        yield one, other


def running_threads() -> set[threading.Thread]:
    """Return all threads but those of resolvers, which wait for the next question for a while."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("pymuduo-resolver")}


@pytest.fixture
def switch_often() -> Iterator[None]:
    """Let the interpreter switch threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture(autouse=True)
def free_threads() -> Iterator[None]:
    """Fail a test after which a free-threaded interpreter has its GIL back: what came next would prove nothing."""
    yield
    if IS_FREE_THREADED:
        assert not sys._is_gil_enabled(), "something that was imported has turned the GIL back on"  # type: ignore[attr-defined,unused-ignore]


@pytest.fixture(autouse=True)
def no_errors_logged(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which the library logs an error: a loop goes on after that, so nothing else would tell.

    ``provokes_errors(*patterns)`` marks a test that means it: each error must match one of the patterns, and each
    pattern one of the errors. Both the message and the exception are looked at. Without patterns any may come, or none.
    """
    errors: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(handler.format(record))  # type: ignore[method-assign]
    log = logging.getLogger("pymuduo")
    log.addHandler(handler)
    yield
    log.removeHandler(handler)
    marker = request.node.get_closest_marker("provokes_errors")
    patterns: tuple[str, ...] = () if marker is None else marker.args
    if marker is None or patterns:
        unexpected = [error for error in errors if not any(re.search(pattern, error) for pattern in patterns)]
        assert not unexpected, "the library has logged:\n" + "\n".join(unexpected)
    for pattern in patterns:
        assert any(re.search(pattern, error) for error in errors), f"no error like {pattern!r} was logged: {errors}"


@pytest.fixture(autouse=True)
def nothing_left_behind(no_errors_logged: None) -> Iterator[None]:
    """Fail a test that leaves a descriptor, a thread or a loop behind."""
    gc.collect()
    descriptors, threads = open_descriptors(), running_threads()
    yield
    assert EventLoop.current() is None, "the test left a loop in its thread"
    eventually(lambda: running_threads() <= threads, "a thread was left behind")
    if not open_descriptors() <= descriptors:
        gc.collect()
        left = open_descriptors() - descriptors
        assert not left, f"descriptors left behind: {[describe_descriptor(fd) for fd in left]}"


def memory_bytes(pid: int | str = "self", *, peak: bool = False) -> int:
    """Return how much memory a process has in use, or the most that it has had; see the mark ``measures_memory``."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:" if peak else "VmRSS:")[2].split()[0]) * 1024


class Received:
    """Bytes that a loop's thread adds to while the test looks at them; without a GIL a bytearray does not bear that."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._lock = threading.Lock()

    def extend(self, data: bytes) -> None:
        with self._lock:
            self._bytes += data

    def __iadd__(self, data: bytes) -> Received:
        self.extend(data)
        return self

    def __getitem__(self, part: slice) -> bytes:
        with self._lock:
            return bytes(self._bytes[part])

    def __bytes__(self) -> bytes:
        return self[:]

    def __len__(self) -> int:
        with self._lock:
            return len(self._bytes)

    def __contains__(self, part: bytes) -> bool:
        return part in self[:]

    def endswith(self, end: bytes) -> bool:
        return self[:].endswith(end)


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """Receive *count* bytes, or fail."""
    received = bytearray()
    while len(received) < count:
        chunk = sock.recv(min(count - len(received), 1 << 20))
        assert chunk, f"the stream ended after {len(received)} of {count} bytes"
        received += chunk
    return bytes(received)


def receive_all(sock: socket.socket) -> bytes:
    """Receive until the stream ends."""
    received = bytearray()
    while chunk := sock.recv(1 << 20):
        received += chunk
    return bytes(received)


def reset(sock: socket.socket) -> None:
    """Close with a reset instead of a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
