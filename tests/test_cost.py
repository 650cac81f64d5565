"""What a message costs: system calls, allocations and instructions, on small fixed workloads.

A server runs in a process of its own and meets its client in lock-step: the client sends nothing before it has the
whole answer to what it sent last. So the server's work is the same from run to run, whatever else the machine does,
and no clock is asked. A preloaded library (``native/counting.c``) counts; callgrind counts instructions.

System calls are compared with exact numbers. Allocations and instructions may grow by ``MARGIN`` over what stands
below. After a change that makes them fewer, or that is worth more of them, measure again and write the new values
down: ``python tests/test_cost.py`` prints them, for the build and the Python that it runs on.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import platform
import select
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import pytest

import pymuduo
from conftest import PATIENCE_S, receive_exactly

pytestmark = pytest.mark.timeout(900)  # callgrind starts twice

IS_FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}{'t' if IS_FREE_THREADED else ''}"
POLLER = os.environ.get("PYMUDUO_POLLER") or "epoll"

MARGIN = 1.15
START_PATIENCE_S = 300.0  # an interpreter starts and ends fifty times slower under callgrind

# Measured: calls of malloc, calloc and realloc for one unit of work in a compiled build, every Python object counted
# (PYTHONMALLOC=malloc), those that the workload's own callbacks make included. The same on Python 3.11 and 3.13.
ALLOCATIONS = {
    "echo": 3.0,  # a message
    "pipeline": 1.125,  # a line
    "broadcast": 0.22,  # a receiver
    "calls": 0.039,  # a call; small tuples come from the interpreter's store of used ones
    "connections": 22.2,  # a connection
}

# Measured: instructions for one echoed message in a compiled build on x86-64, what the kernel executes left out.
INSTRUCTIONS = {"3.11": 3189, "3.13": 3838}

MESSAGE_BYTES = 64
PIPELINE_DEPTH = 16
RECEIVERS = 50
BURST = 1000

# System calls for one step of a workload; of those that are counted, what is not named here is not called at all.
SYSTEM_CALLS: dict[str, dict[str, int]] = {
    "echo": {"reads": 1, "writes": 1, "waits": 1},
    "pipeline": {"reads": 1, "writes": 1, "waits": 1},
    "broadcast": {"reads": 1, "writes": RECEIVERS, "waits": 1},
    # The message that asks for the burst, and its answer; one wake-up written and read for the burst itself.
    "calls": {"reads": 2, "writes": 2, "waits": 2},
    # Accepted (once more, in vain, to learn that nobody else waits), answered, read to its end, closed one round later.
    "connections": {"accepts": 2, "epoll_ctls": 2, "reads": 2, "writes": 1, "closes": 1, "waits": 4},
}
# More of them in plain Python: to accept, the standard library makes a socket object of the descriptor, which asks for
# family, type and protocol, and the new descriptor is made non-blocking by a call of its own.
PURE_CONNECTION = {"getsocknames": 2, "getsockopts": 4, "ioctls": 1}

PROGRAM = f"""
import ctypes, itertools, json, queue, sys, threading
from pymuduo import EventLoop, InetAddress, TcpServer

native = ctypes.CDLL(None)
counting_look = getattr(native, "counting_look", None)  # absent under callgrind

def echo(connection, buffer, when):
    connection.send(buffer)

def answer_lines(connection, buffer, when):
    while (end := buffer.find_eol()) >= 0:
        connection.send(buffer.retrieve_as_bytes(end + 1))

members = {{}}

def join_or_leave(connection):
    if connection.connected:
        members[connection] = None
        connection.send(b".")
    else:
        del members[connection]

def broadcast(connection, buffer, when):
    message = buffer.retrieve_all_as_bytes()
    for member in members:
        member.send(message)

requests = queue.SimpleQueue()

def ask_for_a_burst(connection, buffer, when):
    buffer.retrieve_all()
    native.counting_close_gate()
    requests.put(connection)

def make_bursts():
    while (connection := requests.get()) is not None:
        native.counting_await_sleeper()
        for _ in itertools.repeat(None, {BURST}):
            loop.queue_in_loop(int)
        connection.send(b".")
        native.counting_open_gate()

def look(connection, buffer, when):
    buffer.retrieve_all()
    counting_look()
    connection.send(b".")

def quit_at_the_end(connection):
    if not connection.connected:
        loop.quit()

def report():
    looks = int(sys.argv[2])
    native.counting_name.restype = ctypes.c_char_p
    native.counting_seen.restype = ctypes.c_long
    seen, kind = {{}}, 0
    while name := native.counting_name(kind):
        seen[name.decode()] = [native.counting_seen(i, kind) for i in range(looks)]
        kind += 1
    print(json.dumps(seen))

with EventLoop() as loop:
    server = TcpServer(loop, InetAddress.loopback(0), "work")
    server.connection_callback = join_or_leave if sys.argv[1] == "broadcast" else None
    server.message_callback = {{
        "echo": echo, "connections": echo, "pipeline": answer_lines, "broadcast": broadcast, "calls": ask_for_a_burst,
    }}[sys.argv[1]]
    server.start()
    control = TcpServer(loop, InetAddress.loopback(0), "control")
    control.connection_callback = quit_at_the_end
    control.message_callback = look
    control.start()
    if sys.argv[1] == "calls":
        threading.Thread(target=make_bursts).start()
    print(server.address.port, control.address.port, flush=True)
    loop.run()
    requests.put(None)
    if counting_look is not None:
        report()
"""


# --- the server's process ----------------------------------------------------------------------------------------


class ServerProcess:
    """A server of one workload. It ends when the control connection does, and is killed if it does not."""

    def __init__(
        self, workload: str, *, looks: int = 0, prefix: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-c", PROGRAM, workload, str(looks)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": "0", **(environment or {})},
        )
        self._control: socket.socket | None = None
        self.out = self.err = ""
        try:
            assert self._process.stdout is not None
            readable, _, _ = select.select([self._process.stdout], [], [], START_PATIENCE_S)
            ports = self._process.stdout.readline().split() if readable else []
            if len(ports) == 2:
                self.port = int(ports[0])
                self._control = connect(int(ports[1]))
        finally:
            if self._control is None:
                self._end()
        if self._control is None:
            pytest.fail(f"the server of {workload!r} did not start: {self.err}")

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()
        if value is not None:
            value.add_note(f"the server's last words: {self.err}")
        else:
            assert self._process.returncode == 0, self.err

    def look(self) -> None:
        """Let the server copy its counters."""
        assert self._control is not None
        self._control.sendall(b".")
        receive_exactly(self._control, 1)

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
        else:
            self._process.kill()
        try:
            self.out, self.err = self._process.communicate(timeout=START_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.out, self.err = self._process.communicate()


def connect(port: int) -> socket.socket:
    """Return a connected blocking client with a time limit."""
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)


# --- the workloads, from the client's side -----------------------------------------------------------------------

Step = Callable[[], None]


@contextlib.contextmanager
def echo(port: int) -> Iterator[Step]:
    message = bytes(MESSAGE_BYTES)
    with connect(port) as sock:

        def send_one() -> None:
            sock.sendall(message)
            assert receive_exactly(sock, len(message)) == message

        yield send_one


@contextlib.contextmanager
def pipeline(port: int) -> Iterator[Step]:
    batch = (b"x" * 31 + b"\n") * PIPELINE_DEPTH
    with connect(port) as sock:

        def send_batch() -> None:
            sock.sendall(batch)
            assert receive_exactly(sock, len(batch)) == batch

        yield send_batch


@contextlib.contextmanager
def broadcast(port: int) -> Iterator[Step]:
    message = bytes(MESSAGE_BYTES)
    with contextlib.ExitStack() as stack:
        receivers = [stack.enter_context(connect(port)) for _ in range(RECEIVERS)]
        for receiver in receivers:
            receive_exactly(receiver, 1)  # it has joined

        def send_one() -> None:
            receivers[0].sendall(message)
            for receiver in receivers:
                assert receive_exactly(receiver, len(message)) == message

        yield send_one


@contextlib.contextmanager
def calls(port: int) -> Iterator[Step]:
    with connect(port) as sock:

        def ask_for_a_burst() -> None:
            sock.sendall(b".")
            receive_exactly(sock, 1)

        yield ask_for_a_burst


@contextlib.contextmanager
def connections(port: int) -> Iterator[Step]:
    message = bytes(MESSAGE_BYTES)

    def live_one_life() -> None:
        with connect(port) as sock:
            sock.sendall(message)
            assert receive_exactly(sock, len(message)) == message
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""  # the server has closed its end

    yield live_one_life


class Workload(NamedTuple):
    client: Callable[[int], contextlib.AbstractContextManager[Step]]
    warm_up: int
    steps: int
    units: int  # of what is counted, in one step
    unit: str


WORKLOADS = {
    "echo": Workload(echo, 200, 2000, 1, "message"),
    "pipeline": Workload(pipeline, 50, 200, PIPELINE_DEPTH, "line"),
    "broadcast": Workload(broadcast, 20, 100, RECEIVERS, "receiver"),
    "calls": Workload(calls, 3, 10, BURST, "call"),
    "connections": Workload(connections, 20, 200, 1, "connection"),
}


# --- counting ----------------------------------------------------------------------------------------------------


class Counts(NamedTuple):
    system_calls: dict[str, int]  # of the whole run
    allocations: float  # for one unit


def build_counting(folder: Path) -> Path:
    """Return the counting library, compiled now."""
    library = folder / "counting.so"
    command = [*shlex.split(os.environ.get("CC", "gcc")), "-O2", "-Wall", "-Wextra", "-Werror", "-std=gnu11"]
    command += ["-U_FORTIFY_SOURCE", "-fPIC", "-shared", "-pthread"]  # fortified headers have bodies of their own
    command += [str(Path(__file__).parent / "native" / "counting.c"), "-o", str(library), "-ldl"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=3 * PATIENCE_S, check=False)
    except FileNotFoundError:
        pytest.fail(f"this needs a C compiler, and {command[0]} is not there (CC names another)", pytrace=False)
    if done.returncode:
        pytest.fail(f"{shlex.join(command)} failed:\n{done.stderr}", pytrace=False)
    return library


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_counting(tmp_path_factory.mktemp("native"))


@functools.cache
def count(name: str, library: Path) -> Counts:
    """Run a workload and return what its server did between the warm-up and the end."""
    workload = WORKLOADS[name]
    environment = {"LD_PRELOAD": str(library)}
    if not IS_FREE_THREADED:  # that build has one allocator of its own and refuses to start with another
        environment["PYTHONMALLOC"] = "malloc"
    with ServerProcess(name, looks=4, environment=environment) as server:
        with workload.client(server.port) as step:
            server.look()
            for _ in range(workload.warm_up):
                step()
            server.look()
            server.look()
            for _ in range(workload.steps):
                step()
            server.look()
    # From the second look to the third nothing happens but the looking itself: that is taken off.
    seen: dict[str, list[int]] = json.loads(server.out)
    spent = {kind: (end - middle) - (middle - begin) for kind, (_, begin, middle, end) in seen.items()}
    allocations = spent.pop("allocations")
    return Counts(spent, allocations / (workload.steps * workload.units))


def instructions_per_message(folder: Path) -> float:
    """Return the instructions for one echoed message: the difference of two runs, so that starting cancels out."""
    few, many = 500, 4500
    totals = []
    for messages in (few, many):
        profile = folder / f"callgrind.{messages}"
        prefix = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}"]
        with ServerProcess("echo", prefix=prefix) as server:
            with echo(server.port) as step:
                for _ in range(messages):
                    step()
        totals.append(int(profile.read_text().rpartition("\ntotals: ")[2]))
    return (totals[1] - totals[0]) / (many - few)


def expected_system_calls(name: str) -> dict[str, int]:
    """Return what one step of a workload asks of the kernel."""
    expected = dict(SYSTEM_CALLS[name])
    if POLLER == "poll":
        expected.pop("epoll_ctls", None)
    if name == "connections" and not pymuduo.COMPILED:
        expected.update(PURE_CONNECTION)
    return expected


# --- the promises ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORKLOADS)
def test_no_more_system_calls_than_the_work_needs(counting, name):
    steps = WORKLOADS[name].steps
    counted = {kind: number for kind, number in count(name, counting).system_calls.items() if number}
    expected = {kind: steps * number for kind, number in expected_system_calls(name).items()}
    assert counted.pop("waits") <= expected.pop("waits")
    assert counted == expected


@pytest.mark.skipif(POLLER != "epoll", reason="the values are epoll's: the poll poller is plain Python")
@pytest.mark.skipif(not pymuduo.COMPILED, reason="plain Python makes objects where the compiled build makes none")
@pytest.mark.skipif(IS_FREE_THREADED, reason="the free-threaded build's own allocator can't be replaced")
@pytest.mark.parametrize("name", WORKLOADS)
def test_allocations_have_not_grown(counting, name):
    allocations = count(name, counting).allocations
    assert allocations <= ALLOCATIONS[name] * MARGIN


@pytest.mark.skipif(POLLER != "epoll", reason="the values are epoll's: the poll poller is plain Python")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the values are those of x86-64")
@pytest.mark.skipif(not pymuduo.COMPILED, reason="in plain Python this would measure the interpreter")
def test_instructions_for_an_echoed_message_have_not_grown(tmp_path):
    if PYTHON not in INSTRUCTIONS:
        pytest.skip(f"no value has been measured for Python {PYTHON}")
    if shutil.which("valgrind") is None:
        if os.environ.get("PYMUDUO_ALL_CLIENTS"):
            pytest.fail("valgrind is not installed")
        pytest.skip("valgrind is not installed")
    instructions = instructions_per_message(tmp_path)
    assert instructions <= INSTRUCTIONS[PYTHON] * MARGIN


# --- refreshing the values ---------------------------------------------------------------------------------------


def print_measured_values() -> None:
    """Print what this build costs, beside what is written down above."""
    print(f"Python {PYTHON}, {'compiled' if pymuduo.COMPILED else 'plain Python'}, {POLLER}\n")
    print(f"{'':36}{'measured':>10}{'written down':>14}")
    with tempfile.TemporaryDirectory() as folder:
        library = build_counting(Path(folder))
        for name, workload in WORKLOADS.items():
            counted = count(name, library)
            expected = expected_system_calls(name)
            for kind in {**expected, **counted.system_calls}:
                number = counted.system_calls[kind] / workload.steps
                if number or kind in expected:
                    print(f"{f'{name}: {kind}':36}{number:10.2f}{expected.get(kind, 0):14.2f}")
            written = ALLOCATIONS[name]
            print(f"{f'{name}: allocations a {workload.unit}':36}{counted.allocations:10.3f}{written:14.3f}")
        written = INSTRUCTIONS.get(PYTHON, math.nan)
        print(f"{'echo: instructions a message':36}{instructions_per_message(Path(folder)):10.0f}{written:14.0f}")


if __name__ == "__main__":
    print_measured_values()
