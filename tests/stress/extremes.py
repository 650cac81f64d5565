"""How much is too much: as many connections as the descriptor table holds, one greedy peer, ten thousand that trickle.

    python tests/stress/extremes.py held               all descriptors in use, every connection active
    python tests/stress/extremes.py fairness           the others' latency without and with a greedy peer
    python tests/stress/extremes.py trickle            10,000 connections, a byte each in ten seconds
    python tests/stress/extremes.py --judge            all three, against what is promised

The server is a process of its own with one I/O loop; figures are printed as JSON. With ``--judge`` the exit code is 1
if a bound is missed, and 2 if the machine is too busy, or too small, to tell; standard error has it in words. What can
be judged without a clock is judged by ``test_hostile_peers.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PATIENCE_S = 60.0
_SPARE = 200  # descriptors for everything else
_AT_ONCE = 100
_POLITE = 1000
_ROUNDS = 7  # of fairness
_ASKED = 3000  # in a round, of each kind
_MAX_P99_RATIO = 5.0
_TRICKLING = 10_000
_TRICKLE_S = 10.0  # between two bytes
_MESSAGE_S = 15.0


def raise_limit() -> int:
    """Allow as many descriptors as may be, and return that."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def serve(message_s: float) -> None:
    """Be the server: lines back; a first byte of 0 is a greedy peer's, who is swallowed; one of 1 keeps it busy."""
    from pymuduo import Buffer, EventLoop, IdleTimeouts, InetAddress, TcpConnection, TcpServer

    raise_limit()

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        if connection.context == "greedy" or buffer.peek(1)[0] == 0:
            connection.context = "greedy"
            buffer.retrieve_all()
        elif buffer.peek(1)[0] == 1:
            buffer.retrieve_all()
            be_busy(connection)
        elif (end := buffer.find(b"\n")) >= 0:
            connection.send(buffer.retrieve_as_bytes(end + 1))

    def be_busy(connection: TcpConnection) -> None:
        if connection.connected:
            connection.loop.queue_in_loop(be_busy, connection)

    with EventLoop() as loop:
        server = TcpServer(loop, InetAddress.any(0), "extremes")
        server.message_callback = on_message
        if message_s:
            server.idle_timeouts = IdleTimeouts(message_s=message_s)
        server.start()
        print(server.address.port, flush=True)
        loop.run_every(0.5, lambda: os.getppid() == 1 and loop.quit())
        loop.run()


@contextlib.contextmanager
def server(message_s: float = 0.0) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Run the server for the length of a block."""
    command = [sys.executable, __file__, "--serve", str(message_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def resident_kib(process: subprocess.Popen[str]) -> float:
    """Return how much memory a process has in use."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


def connect_many(port: int, count: int) -> list[socket.socket]:
    """Connect, a hundred at a time, so that no backlog overflows."""
    connections = []
    for number in range(count):
        sock = socket.create_connection((f"127.0.0.{1 + number % 100}", port), timeout=_PATIENCE_S)
        connections.append(sock)
        if number % _AT_ONCE == 0:
            ask(sock)
    return connections


def ask(sock: socket.socket) -> float:
    """Send a line, wait for it to come back, and return how many seconds that took."""
    begin = time.perf_counter()
    sock.sendall(b"a line of thirty-two bytes, echo\n")
    received = b""
    while not received.endswith(b"\n"):
        chunk = sock.recv(100)
        if not chunk:
            raise ConnectionError("the server has left")
        received += chunk
    return time.perf_counter() - begin


def ask_all(connections: list[socket.socket]) -> float:
    """Ask on all connections at once, and return how many seconds it took until all were answered."""
    begin = time.perf_counter()
    with selectors.EpollSelector() as selector:
        for sock in connections:
            selector.register(sock, selectors.EVENT_READ)
            sock.send(b"a line of thirty-two bytes, echo\n")
        left = len(connections)
        while left:
            ready = selector.select(_PATIENCE_S)
            if not ready:
                raise TimeoutError(f"{left} are not answered")
            for key, _ in ready:
                if not key.fileobj.recv(100).endswith(b"\n"):  # type: ignore[union-attr]
                    raise ConnectionError("half an answer")
                left -= 1
    return time.perf_counter() - begin


def percentile(values: list[float], percent: float) -> float:
    """Return a percentile, in milliseconds."""
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))] * 1e3


def held() -> dict[str, Any]:
    """Hold as many connections as there are descriptors, all of them active."""
    count = raise_limit() - _SPARE
    with server() as (port, process):
        before = resident_kib(process)
        connections = connect_many(port, count)
        rounds = [ask_all(connections) for _ in range(5)]
        after = resident_kib(process)
        for sock in connections:
            sock.close()
    return {
        "connections": count,
        "answers_per_s": round(count / statistics.median(rounds)),
        "server_kib_per_connection": round((after - before) / count, 2),
    }


def fairness() -> dict[str, Any]:
    """Measure a thousand polite peers: alone, beside one that sends as fast as it can, and with a server that is busy.

    Busy with nothing: its loop turns without waiting, and as many processes want a processor as with the greedy peer.
    What that costs is the machine's doing, not the greedy peer's. The three take turns.
    """
    p99_ms: dict[str, list[float]] = {"alone": [], "busy": [], "greedy": []}
    with server() as (port, _):
        connections = connect_many(port, _POLITE)
        rng = random.Random(1)
        for _ in range(_ROUNDS):
            for name, values in p99_ms.items():
                with contextlib.ExitStack() as stack:
                    if name != "alone":
                        stack.enter_context(companion(name, port))
                    latencies = [ask(rng.choice(connections)) for _ in range(_ASKED)]
                values.append(round(percentile(latencies, 99), 3))
        for sock in connections:
            sock.close()
    best = {name: min(values) for name, values in p99_ms.items()}
    median = {name: statistics.median(values) for name, values in p99_ms.items()}
    return {
        "p99_ms": p99_ms,
        "greedy_by_alone": round(best["greedy"] / best["alone"], 2),
        "busy_by_alone": round(median["busy"] / best["alone"], 2),
        "greedy_by_busy": round(median["greedy"] / median["busy"], 2),
    }


@contextlib.contextmanager
def companion(kind: str, port: int) -> Iterator[None]:
    """Have a peer for the length of a block that is greedy, or keeps the server busy."""
    command = [sys.executable, __file__, "--companion", kind, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # it has begun
            yield
            if process.poll() is not None:
                raise ConnectionError(f"the {kind} peer was cut off")
        finally:
            process.kill()


def be_companion(kind: str, port: int) -> None:
    """Send as fast as it goes, or use a processor otherwise, until killed, or the parent is gone."""
    data = bytes(1 << 20)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(data if kind == "greedy" else b"\x01")
        print("begun", flush=True)
        while os.getppid() != 1:
            if kind == "greedy":
                sock.sendall(data)


def trickle() -> dict[str, Any]:
    """Let ten thousand connections send a byte each in ten seconds, and see what others get meanwhile."""
    count = min(_TRICKLING, raise_limit() - _SPARE)
    with server(message_s=_MESSAGE_S) as (port, process):
        before = resident_kib(process)
        attackers = connect_many(port, count)
        latencies = []
        with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S)) as polite:
            left = attackers
            peak = 0.0
            begin = next_byte = time.monotonic()
            while left and time.monotonic() < begin + _PATIENCE_S:
                if time.monotonic() >= next_byte:
                    next_byte += _TRICKLE_S
                    for number, sock in enumerate(left):
                        with contextlib.suppress(OSError):
                            sock.send(b"x")
                        if number % 10 == 0:
                            latencies.append(ask(polite))
                    peak = max(peak, resident_kib(process))
                latencies.append(ask(polite))
                left = [sock for sock in left if not _is_closed(sock)]
                time.sleep(0.1)
            seconds = time.monotonic() - begin
        for sock in attackers:
            sock.close()
    return {
        "connections": count,
        "closed": count - len(left),
        "seconds_until_all_were": round(seconds, 1),
        "server_kib_per_connection": round((peak - before) / count, 2),
        "others": {f"p{p}_ms": round(percentile(latencies, p), 3) for p in (50, 99)},
    }


def _is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def judge_fairness(figures: dict[str, Any]) -> tuple[int, str]:
    """Return an exit code and words.

    The best rounds are those that other programs disturbed least. Where a server that is only busy has its peers wait
    as well, most of the time, it is for a processor that they wait.
    """
    ratio, machine = figures["greedy_by_alone"], figures["busy_by_alone"]
    told = f"the others' p99 is {ratio} times as long beside a greedy peer (promised: {_MAX_P99_RATIO:g})"
    if ratio <= _MAX_P99_RATIO:
        return 0, told
    if machine > _MAX_P99_RATIO and figures["greedy_by_busy"] <= _MAX_P99_RATIO:
        return 2, f"{told}; but {machine} times with a server that is only busy, for want of a processor"
    return 1, told


def judge_trickle(figures: dict[str, Any]) -> tuple[int, str]:
    """Return an exit code and words; whoever else asked has been answered, or there were no figures."""
    told = f"{figures['closed']} of {figures['connections']} who trickled are closed"
    if figures["closed"] < figures["connections"]:
        return 1, told
    if figures["connections"] < _TRICKLING:
        return 2, f"{told}; but more descriptors are not allowed, and {_TRICKLING} were promised"
    return 0, told


def judge_held(figures: dict[str, Any]) -> tuple[int, str]:
    """Return an exit code and words; if somebody is not answered, there are no figures."""
    return 0, f"all of {figures['connections']} connections are answered"


KINDS = {"held": (held, judge_held), "fairness": (fairness, judge_fairness), "trickle": (trickle, judge_trickle)}


def main() -> int:
    """Do what the command line says."""
    if sys.argv[1:2] == ["--serve"]:
        serve(float(sys.argv[2]))
        return 0
    if sys.argv[1:2] == ["--companion"]:
        be_companion(sys.argv[2], int(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description="measures what much too much does")
    parser.add_argument("kind", nargs="*", choices=[*KINDS, []], help="default: all of them")
    parser.add_argument("--judge", action="store_true", help="exit code 1 if a bound is missed")
    options = parser.parse_args()
    codes = [0]
    for kind in options.kind or KINDS:
        measure, judge = KINDS[kind]
        try:
            figures = measure()
        except OSError as e:  # somebody was not connected, or not answered
            if not options.judge:
                raise
            code, told = 1, f"{type(e).__name__}: {e}"
        else:
            print(json.dumps({kind: figures}), flush=True)
            code, told = judge(figures)
        if options.judge:
            print(f"{kind}: {('kept', 'MISSED', 'not judged')[code]}: {told}", file=sys.stderr, flush=True)
            codes.append(code)
    return 1 if 1 in codes else max(codes)


if __name__ == "__main__":
    sys.exit(main())
