"""Runs servers under churn for minutes, and looks whether anything grows: memory, descriptors, threads, objects.

    python tests/stress/soak.py --minutes 10 --out soak

One process serves echo in plain text, in TLS and on a Unix socket, on two loops, and has clients of its own that are
cut off and come back, timers that are set and cancelled, and a thread that sends to everybody. Another process is the
churn: connections of every length, sizes, orderly ends, resets, half-closes, readers that do not read, handshakes that
fail. Samples are taken once a second. What must be flat is judged by its slope: the median of the slopes between all
pairs of samples after the warm-up (Theil and Sen), times the time, against what would be tolerable.

Writes ``OUT.json`` and, where matplotlib is installed, ``OUT.png``; the exit code is 1 if something grew.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import random
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from certificates import client_context, server_context
from pymuduo import (
    COMPILED,
    Buffer,
    EventLoopThread,
    IdleTimeouts,
    InetAddress,
    TcpClient,
    TcpConnection,
    TcpServer,
    UnixAddress,
)

WARM_UP = 0.25  # of the time; what is allocated once has been by then
TOLERATED = {"rss_kib": 1500.0, "descriptors": 2.0, "threads": 0.9, "objects": 400.0}  # growth over the whole run
PATIENCE_S = 20.0
# Left to itself glibc raises its thresholds with what it sees, and then keeps megabytes that are free, a heap for each
# thread: whether memory grows could not be seen in it.
PLAIN_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


# --- the churn: a process of its own ---------------------------------------------------------------------------------


class Churn(threading.Thread):
    """Does one thing after another to the servers, chosen at random."""

    def __init__(self, number: int, ports: list[int], path: str, deadline: float) -> None:
        super().__init__()
        self.random = random.Random(number)
        self.port, self.tls_port = ports
        self.path = path
        self.deadline = deadline
        self.context = client_context()
        self.session: ssl.SSLSession | None = None
        self.done = 0
        self.unexpected: list[str] = []

    def run(self) -> None:
        deeds: list[Callable[[], None]] = [self.echo, self.echo, self.talk_tls, self.talk_unix, self.reset]
        deeds += [self.half_close, self.do_not_read, self.spoil_handshake, self.come_and_go]
        while time.monotonic() < self.deadline:
            deed = self.random.choice(deeds)
            try:
                deed()
            except (ConnectionError, ssl.SSLError, TimeoutError):
                pass  # a server may cut anybody off
            except Exception as e:
                self.unexpected.append(f"{deed.__name__}: {e!r}")
            self.done += 1

    def connect(self, port: int) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)

    def exchange(self, sock: socket.socket) -> None:
        for _ in range(self.random.randint(1, 10)):
            data = self.random.randbytes(self.random.choice((1, 100, 5000, 30_000)))
            sock.sendall(data)
            received = 0
            while received < len(data):
                chunk = sock.recv(65536)
                if not chunk:
                    raise ConnectionResetError("cut off")
                received += len(chunk)

    def echo(self) -> None:
        with self.connect(self.port) as sock:
            self.exchange(sock)

    def talk_tls(self) -> None:
        with self.context.wrap_socket(
            self.connect(self.tls_port), server_hostname="localhost", session=self.session
        ) as sock:
            self.exchange(sock)
            self.session = sock.session
            if self.random.random() < 0.5:
                with contextlib.suppress(OSError):
                    sock.unwrap()

    def talk_unix(self) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE_S)
            sock.connect(self.path)
            self.exchange(sock)

    def reset(self) -> None:
        with self.connect(self.random.choice((self.port, self.tls_port))) as sock:
            sock.sendall(b"x" * 1000)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def half_close(self) -> None:
        with self.connect(self.port) as sock:
            sock.sendall(b"y" * self.random.randint(1, 50_000))
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass

    def do_not_read(self) -> None:
        with self.connect(self.port) as sock:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(200):
                    sock.send(bytes(65536))

    def spoil_handshake(self) -> None:
        with self.connect(self.tls_port) as sock:
            sock.sendall(self.random.choice((b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01", bytes(300))))
            if self.random.random() < 0.5:
                sock.recv(100)

    def come_and_go(self) -> None:
        for _ in range(20):
            self.connect(self.port).close()


def churn(ports: list[int], path: str, seconds: float) -> None:
    """Be the churn, and print what was done."""
    deadline = time.monotonic() + seconds
    threads = [Churn(number, ports, path, deadline) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    unexpected = [text for thread in threads for text in thread.unexpected]
    print(json.dumps({"deeds": sum(thread.done for thread in threads), "unexpected": unexpected[:20]}))


# --- the servers, and what is sampled --------------------------------------------------------------------------------


class Service:
    """Servers, clients, timers and a thread that sends to all."""

    def __init__(self, folder: str) -> None:
        self.thread = EventLoopThread(name="base")
        self.loop = self.thread.start_loop()
        self.path = str(Path(folder) / "soak.sock")
        self.random = random.Random(0)
        self.is_over = threading.Event()
        made = threading.Event()
        self.loop.run_in_loop(lambda: (self._make(), made.set()))
        if not made.wait(PATIENCE_S):
            raise RuntimeError("the servers did not come up")
        self.sender = threading.Thread(target=self._send_to_all)
        self.sender.start()

    def _make(self) -> None:
        idle = IdleTimeouts(stall_s=2.0, read_s=5.0)
        self.servers = []
        for name, address, context in (
            ("plain", InetAddress.loopback(0), None),
            ("tls", InetAddress.loopback(0), server_context()),
            ("unix", UnixAddress(self.path), None),
            ("flaky", InetAddress.loopback(0), None),
        ):
            server = TcpServer(self.loop, address, name, ssl_context=context)
            server.thread_num = 2 if name == "plain" else 0
            server.message_callback = self._echo
            server.max_output_bytes = 4 << 20
            server.idle_timeouts = idle
            server.handshake_timeout_s = 0.5
            server.start()
            self.servers.append(server)
        flaky = self.servers[3]
        flaky.message_callback = self._cut_off
        self.clients = [
            TcpClient(self.loop, flaky.address, f"client{i}", retry=True, retry_delay_s=0.01, max_retry_delay_s=0.1)
            for i in range(4)
        ]
        for client in self.clients:
            client.connection_callback = self._greet
            client.connect()
        self.loop.run_every(0.01, self._play_with_timers)

    def _echo(self, connection: TcpConnection, buffer: Buffer, when: object) -> None:
        connection.send(buffer)

    def _cut_off(self, connection: TcpConnection, buffer: Buffer, when: object) -> None:
        buffer.retrieve_all()
        if self.random.random() < 0.5:
            connection.force_close()
        else:
            connection.shutdown()

    def _greet(self, connection: TcpConnection) -> None:
        if connection.connected:
            connection.send(b"hello")

    def _play_with_timers(self) -> None:
        timers = [self.loop.run_after(self.random.random(), int) for _ in range(20)]
        for timer in timers[::2]:
            timer.cancel()

    def _send_to_all(self) -> None:
        while not self.is_over.wait(0.02):
            for connection in self.servers[3].connections:
                connection.send(b"news")

    def counts(self) -> dict[str, float]:
        """Return what must not grow, and what tells that something goes on."""
        gc.collect()
        give_back_memory()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {
            "rss_kib": pages * os.sysconf("SC_PAGE_SIZE") / 1024,
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "objects": len(gc.get_objects()),
            "connections": sum(server.connection_count for server in self.servers),
            "accepted": sum(server.stats().accepted for server in self.servers),
        }

    def close(self) -> None:
        self.is_over.set()
        self.sender.join(PATIENCE_S)
        for client in self.clients:
            client.close()
        for server in self.servers:
            server.stop(0)
        for server in self.servers:
            server.join(PATIENCE_S)
        self.thread.stop(PATIENCE_S)


def give_back_memory() -> None:
    """Let the C library give back what it only keeps for later, or one coincidence of large outputs would be a step."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def slope(times: list[float], values: list[float]) -> float:
    """Return by how much the values grow in a second: the median of all pairs."""
    step = max(1, len(times) // 150)  # of so many samples all pairs would be too many
    points = list(zip(times, values, strict=True))[::step]
    slopes = [(y - x) / (t - s) for i, (s, x) in enumerate(points) for t, y in points[i + 1 :]]
    return statistics.median(slopes) if slopes else 0.0


def draw(samples: list[dict[str, float]], verdict: dict[str, Any], path: Path) -> None:
    """Draw the samples, where that is possible."""
    try:
        from matplotlib import pyplot
    except ImportError:
        return
    figure, axes = pyplot.subplots(len(TOLERATED), 1, sharex=True, figsize=(9, 9))
    for axis, name in zip(axes, TOLERATED, strict=True):
        axis.plot([sample["time"] for sample in samples], [sample[name] for sample in samples], linewidth=1)
        axis.set_title(f"{name}: {verdict[name]['growth']:+.1f} over the run", fontsize=9)
        axis.axvline(samples[-1]["time"] * WARM_UP, color="grey", linestyle=":")
    axes[-1].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def soak(minutes: float, out: Path | None) -> bool:
    """Run, sample, judge; whether all was flat."""
    seconds = minutes * 60
    samples: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        service = Service(folder)
        ports = [str(server.address.port) for server in service.servers[:2]]
        child = subprocess.Popen(
            [sys.executable, __file__, "--churn", *ports, service.path, str(seconds)], stdout=subprocess.PIPE, text=True
        )
        begin = time.monotonic()
        while child.poll() is None and time.monotonic() < begin + seconds + PATIENCE_S:
            samples.append({"time": time.monotonic() - begin, **service.counts()})
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(min(1.0, seconds / 40))
        printed, _ = child.communicate(timeout=PATIENCE_S)
        service.close()
    done = json.loads(printed)
    steady = [sample for sample in samples if sample["time"] > seconds * WARM_UP]
    times = [sample["time"] for sample in steady]
    verdict: dict[str, Any] = {}
    for name, tolerated in TOLERATED.items():
        growth = slope(times, [sample[name] for sample in steady]) * (times[-1] - times[0])
        verdict[name] = {"growth": round(growth, 2), "tolerated": tolerated, "is_flat": growth <= tolerated}
    is_flat = all(entry["is_flat"] for entry in verdict.values()) and not done["unexpected"]
    accepted = samples[-1]["accepted"]
    report = {"minutes": minutes, "compiled": COMPILED, "accepted": accepted, **done, "verdict": verdict}
    print(json.dumps(report, indent=2))
    if out is not None:
        out.with_suffix(".json").write_text(json.dumps({**report, "samples": samples}))
        draw(samples, verdict, out.with_suffix(".png"))
    return is_flat


def main() -> int:
    """Do what the command line says."""
    if sys.argv[1:2] == ["--churn"]:
        churn([int(port) for port in sys.argv[2:4]], sys.argv[4], float(sys.argv[5]))
        return 0
    parser = argparse.ArgumentParser(description="looks whether anything grows under churn")
    parser.add_argument("--minutes", type=float, default=1.0, help="default %(default)s")
    parser.add_argument("--out", type=Path, help="where to write the samples and a picture, without a suffix")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in PLAIN_MALLOC.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **PLAIN_MALLOC})
    return 0 if soak(options.minutes, options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
