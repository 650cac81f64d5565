"""How much is too much: as many connections as the descriptor table holds, one greedy peer, ten thousand that trickle.

    python tests/stress/extremes.py held               all descriptors in use, every connection active
    python tests/stress/extremes.py fairness           the others' latency without and with a greedy peer
    python tests/stress/extremes.py trickle            10,000 connections, a byte each in ten seconds

The server is a process of its own with one I/O loop; figures are printed as JSON. They are for reading, not for
judging: what must hold is judged by ``test_hostile_peers.py``.
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


def raise_limit() -> int:
    """Allow as many descriptors as may be, and return that."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def serve(message_s: float) -> None:
    """Be the server: lines back, anything of a greedy peer (its first byte is a zero) swallowed."""
    from pymuduo import Buffer, EventLoop, IdleTimeouts, InetAddress, TcpConnection, TcpServer

    raise_limit()

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        if connection.context == "greedy" or buffer.peek(1)[0] == 0:
            connection.context = "greedy"
            buffer.retrieve_all()
        elif (end := buffer.find(b"\n")) >= 0:
            connection.send(buffer.retrieve_as_bytes(end + 1))

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
    """Measure a thousand polite peers: alone, beside one that sends as fast as it can, and with that one elsewhere.

    Elsewhere is another server process: there it takes as much of the processors, which is not the server's doing.
    """
    figures: dict[str, Any] = {}
    with server() as (port, _), server() as (other_port, _):
        connections = connect_many(port, 1000)
        rng = random.Random(1)
        for name, greedy_port in (("alone", 0), ("greedy elsewhere", other_port), ("greedy here", port)):
            with contextlib.ExitStack() as stack:
                if greedy_port:
                    command = [sys.executable, __file__, "--greedy", str(greedy_port)]
                    greedy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                    stack.callback(greedy.communicate)
                    stack.callback(greedy.kill)
                    assert greedy.stdout is not None
                    greedy.stdout.readline()  # it sends
                latencies = [ask(rng.choice(connections)) for _ in range(10_000)]
            figures[name] = {f"p{p}_ms": round(percentile(latencies, p), 3) for p in (50, 99)}
        for sock in connections:
            sock.close()
    here = figures["greedy here"]["p99_ms"]
    return {**figures, **{f"p99_by_{name}": round(here / figures[name]["p99_ms"], 2) for name in list(figures)[:2]}}


def be_greedy(port: int) -> None:
    """Send as fast as it goes, until killed, or the parent is gone."""
    data = bytes(1 << 20)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(data)
        print("sending", flush=True)
        while os.getppid() != 1:
            sock.sendall(data)


def trickle() -> dict[str, Any]:
    """Let ten thousand connections send a byte each in ten seconds, and see what others get meanwhile."""
    count = min(10_000, raise_limit() - _SPARE)
    with server(message_s=15.0) as (port, process):
        before = resident_kib(process)
        attackers = connect_many(port, count)
        latencies = []
        begin = time.monotonic()
        with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S)) as polite:
            while time.monotonic() < begin + 12.0:
                for sock in attackers[:: max(1, count // 1000)]:
                    with contextlib.suppress(OSError):
                        sock.send(b"x")
                    latencies.append(ask(polite))
                for sock in attackers:
                    with contextlib.suppress(OSError):
                        sock.send(b"x")
                time.sleep(5.0)
            peak = resident_kib(process)
            closed = 0
            while closed < count and time.monotonic() < begin + 60:
                closed = sum(map(_is_closed, attackers))
                latencies.append(ask(polite))
                time.sleep(0.2)
            seconds = time.monotonic() - begin
        for sock in attackers:
            sock.close()
    return {
        "connections": count,
        "closed": closed,
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


def main() -> None:
    """Do what the command line says."""
    if sys.argv[1:2] == ["--serve"]:
        serve(float(sys.argv[2]))
        return
    if sys.argv[1:2] == ["--greedy"]:
        be_greedy(int(sys.argv[2]))
        return
    kinds = {"held": held, "fairness": fairness, "trickle": trickle}
    parser = argparse.ArgumentParser(description="measures what much too much does")
    parser.add_argument("kind", nargs="*", choices=[*kinds, []], help="default: all of them")
    for kind in parser.parse_args().kind or kinds:
        print(json.dumps({kind: kinds[kind]()}), flush=True)


if __name__ == "__main__":
    main()
