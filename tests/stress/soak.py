"""Runs servers under churn for minutes, and looks whether anything grows: memory, descriptors, threads, objects.

    python tests/stress/soak.py --minutes 10 --out soak

One process has servers of every kind (plain, TLS, a Unix socket, STARTTLS, PROXY headers, files) on several loops, and
clients of its own, some in TLS, of which most leave or are cut off and come back, and some stay to the end; timers that
are set and cancelled; and a thread that sends to everybody. Another process is the churn (``churn.py``), which comes in
bouts. After each bout everything comes to rest, and what is there then is counted: what happens to be under way at a
moment is no growth.

Judged is that everybody was served: nothing unexpected on either side, each connection that the churn made was
accepted, all threads have ended. And the slope of what is there at rest: the median of the slopes between all pairs of
counts after the warm-up (Theil and Sen), times the time, against what would be tolerable. That of memory is judged in
runs of a minute and more.

Writes ``OUT.json`` and, where matplotlib is installed, ``OUT.png``. The exit code is 1 if something is not as it should
be, and ``problems`` says what.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from certificates import NAME, client_context, server_context, write_files
from conftest import PATIENCE_S, call_in_loop
from pymuduo import (
    COMPILED,
    Buffer,
    EventLoopThread,
    IdleTimeouts,
    InetAddress,
    ProxyProtocol,
    TcpClient,
    TcpConnection,
    TcpServer,
    UnixAddress,
    send_file,
    start_tls,
)

PATIENT_S = 8.0  # who behaves is never silent for so long; and who has left is forgotten after an eighth of it
BOUT_S = 5.0
MAX_BOUTS = 20
WARM_UP = 0.25  # of the time; what is allocated once has been by then
TOLERATED = {"rss_kib": 1500.0, "blocks": 300.0, "objects": 20.0, "descriptors": 0.5, "threads": 0.5}
MEMORY_FROM_S = 60.0  # in less time memory has no slope worth the name
ACCEPTED_A_SECOND = 20  # far fewer than there are, and far more than a server that is dead or deaf accepts
# Left to itself glibc raises its thresholds with what it sees, and then keeps megabytes that are free, a heap for each
# thread: whether memory grows could not be seen in it.
PLAIN_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


class Problems(logging.Handler):
    """What is not as it should be, and how often; what the library logs as an error is such."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Take an error from the log."""
        self.counts[self.format(record)] += 1

    def add(self, what: str, times: int = 1) -> None:
        """Take any other."""
        self.counts[what] += times


class Talker:
    """A client of our own that sends and checks what comes back; then it leaves and comes again, or stays and goes on.

    Attributes:
        rounds: how often it was answered. is_quiet: one that stays has nothing under way.
    """

    def __init__(self, service: Service, server: TcpServer, name: str, *, stays: bool) -> None:
        self.service = service
        self.stays = stays
        self.client = TcpClient(
            server.loop,
            server.address,
            name,
            retry=not stays,
            retry_delay_s=0.01,
            max_retry_delay_s=0.1,
            ssl_context=client_context() if server.ssl_context is not None else None,
            server_hostname=NAME,
        )
        self.client.connection_callback = self._greet
        self.client.message_callback = self._check
        self.sent = b""
        self.rounds = 0
        self.is_quiet = not stays
        self.client.connect()

    def speak(self) -> None:
        """Send something."""
        connection = self.client.connection
        if connection is not None:
            rng = self.service.random
            self.sent = rng.randbytes(rng.choice((10, 1000, 100_000)))
            self.is_quiet = False
            connection.send(self.sent)

    def _greet(self, connection: TcpConnection) -> None:
        if connection.connected:
            self.speak()
        elif self.stays and not self.service.is_over.is_set():
            self.service.problems.add(f"{connection.name} was to stay, and has ended: {connection.error!r}")

    def _check(self, connection: TcpConnection, buffer: Buffer, when: object) -> None:
        if len(buffer) < len(self.sent):
            return
        if buffer.retrieve_all_as_bytes() != self.sent:
            self.service.problems.add(f"{connection.name}: the echo is something else")
        self.rounds += 1
        if self.stays:
            self.is_quiet = True
            if not self.service.is_resting:
                self.client.loop.run_after(0.002, self.speak)
                self.is_quiet = False
        elif self.service.random.random() < 0.5:
            connection.shutdown()
        else:
            connection.force_close()


class Service:
    """Servers, clients, timers and a thread that sends to all."""

    def __init__(self, folder: Path, problems: Problems) -> None:
        self.problems = problems
        self.random = random.Random(0)
        self.thread = EventLoopThread(name="base")
        self.loop = self.thread.start_loop()
        self.folder = folder
        self.path = str(folder / "socket")
        self.file = folder / "file"
        self.file.write_bytes(self.random.randbytes(300_000))
        write_files(folder)
        self.servers: dict[str, TcpServer] = {}
        self.leaving: list[TcpClient] = []
        self.talkers: list[Talker] = []
        self.is_resting = False
        self.is_over = threading.Event()
        call_in_loop(self.loop, self._make)
        self.sender = threading.Thread(target=self._send_to_all)
        self.sender.start()

    def _make(self) -> None:
        self.context = server_context()
        patient, strict = IdleTimeouts(stall_s=PATIENT_S, read_s=PATIENT_S), IdleTimeouts(stall_s=0.5, read_s=5.0)
        self._serve("plain", patient, thread_num=2)
        self._serve("tls", patient, context=self.context)
        self._serve("unix", patient, address=UnixAddress(self.path))
        self._serve("upgrade", patient, message_callback=self._upgrade)
        self._serve("proxy", patient, proxy_protocol=ProxyProtocol(["127.0.0.0/8"]))
        self._serve("file", patient, message_callback=self._send_file)
        self._serve("strict", strict, thread_num=1, max_output_bytes=4 << 20)
        self._serve("strict tls", strict, context=self.context, handshake_timeout_s=0.5)
        self._serve("flaky", patient, message_callback=self._cut_off)
        self._serve("lasting", None)
        self._serve("lasting tls", None, context=self.context)
        for number in range(4):
            client = TcpClient(
                self.loop,
                self.servers["flaky"].address,
                f"client{number}",
                retry=True,
                retry_delay_s=0.01,
                max_retry_delay_s=0.1,
            )
            client.connection_callback = self._greet
            client.connect()
            self.leaving.append(client)
        for name, server in self.servers.items():
            if name in {"plain", "tls", "lasting", "lasting tls"}:
                self.talkers.append(Talker(self, server, f"{name} talker", stays=name.startswith("lasting")))
        self.leaving += [talker.client for talker in self.talkers if not talker.stays]
        self.loop.run_every(0.01, self._play_with_timers)

    def _serve(
        self, name: str, idle: IdleTimeouts | None, *, address: Any = None, context: Any = None, **settings: Any
    ) -> None:
        server = TcpServer(self.loop, address or InetAddress.loopback(0), name, ssl_context=context)
        server.message_callback = self._echo
        server.handshake_failed_callback = lambda connection, error: None  # the churn's business
        server.idle_timeouts = idle
        for setting, value in settings.items():
            setattr(server, setting, value)
        server.start()
        self.servers[name] = server

    def description(self) -> dict[str, Any]:
        """Return what the churn has to know."""
        ports = {name: server.address.port for name, server in self.servers.items() if name != "unix"}
        return {
            "ports": ports,
            "unix": self.path,
            "trusted": str(self.folder / "trusted.pem"),
            "file": str(self.file),
        }

    # --- what they do ---

    def _echo(self, connection: TcpConnection, buffer: Buffer, when: object) -> None:
        connection.send(buffer)

    def _upgrade(self, connection: TcpConnection, buffer: Buffer, when: object) -> None:
        if connection.ssl_object is not None:
            connection.send(buffer)
        elif buffer.find(b"\n") >= 0:
            buffer.retrieve_all()
            connection.send(b"go\n")
            start_tls(connection, self.context, server_side=True)

    def _send_file(self, connection: TcpConnection, buffer: Buffer, when: object) -> None:
        if buffer.find(b"\n") >= 0:
            buffer.retrieve_all()
            send_file(connection, self.file)

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
        if not self.is_resting:
            timers = [self.loop.run_after(self.random.random(), int) for _ in range(20)]
            for timer in timers[::2]:
                timer.cancel()

    def _send_to_all(self) -> None:
        while not self.is_over.wait(0.02):
            for connection in self.servers["flaky"].connections:
                connection.send(b"news")

    # --- what there is ---

    def rest(self) -> dict[str, float]:
        """Let everything come to an end that is under way, and return what is there then."""
        self.is_resting = True
        for client in self.leaving:
            client.disconnect()
        deadline = time.monotonic() + PATIENCE_S
        while left := self._under_way():
            if time.monotonic() > deadline:
                self.problems.add(f"does not come to rest: {left}")
                break
            time.sleep(0.01)
        return self.counts()

    def _under_way(self) -> dict[str, int]:
        """Return connections and timers that there still are; a wheel's timer ends when it has forgotten everybody."""
        left = {name: server.connection_count for name, server in self.servers.items()}
        for server in self.servers.values():
            for loop in server.thread_pool.loops():
                left[f"timers of {loop.name}"] = call_in_loop(loop, lambda loop=loop: loop.timer_count)
        left[f"timers of {self.loop.name}"] -= 1  # the one that plays with others
        left["lasting"] -= 1
        left["lasting tls"] -= 1
        left["talkers"] = sum(not talker.is_quiet for talker in self.talkers if talker.stays)
        return {name: count for name, count in left.items() if count}

    def go_on(self) -> None:
        """End the rest."""
        self.is_resting = False
        for client in self.leaving:
            client.connect()
        for talker in self.talkers:
            if talker.stays:
                self.loop.run_in_loop(talker.speak)

    def counts(self) -> dict[str, float]:
        """Return what must not grow, and what tells that something goes on."""
        gc.collect()
        give_back_memory()
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
        return {
            "rss_kib": pages * os.sysconf("SC_PAGE_SIZE") / 1024,
            "blocks": sys.getallocatedblocks(),
            "objects": len(gc.get_objects()),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "connections": sum(server.connection_count for server in self.servers.values()),
        }

    def close(self) -> None:
        """End everything, and see that it has ended."""
        self.is_over.set()
        self.sender.join(PATIENCE_S)
        if self.sender.is_alive():
            self.problems.add("the thread that sends has not ended")
        for client in [*self.leaving, *(talker.client for talker in self.talkers)]:
            client.close()
        for server in self.servers.values():
            server.stop(0)
        for name, server in self.servers.items():
            if not server.join(PATIENCE_S):
                self.problems.add(f"{name} has not stopped")
        if not self.thread.stop(PATIENCE_S):
            self.problems.add("the base loop has not ended")


_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back_memory() -> None:
    """Let the C library give back what it only keeps for later, or one coincidence of large outputs would be a step."""
    if _trim is not None:
        _trim(0)


class Samples:
    """What was counted, and when: in arrays, because anything else would be objects that grow in number."""

    def __init__(self) -> None:
        self.begin = time.monotonic()
        self.columns: dict[str, array[float]] = {}

    def add(self, counts: dict[str, float]) -> None:
        """Take a sample."""
        for name, value in {"time": time.monotonic() - self.begin, **counts}.items():
            self.columns.setdefault(name, array("d")).append(value)

    def growth(self, name: str) -> float:
        """Return by how much the values have grown since the warm-up, going by the median slope of all pairs."""
        times = self.columns["time"]
        first = next(at for at, moment in enumerate(times) if moment > times[-1] * WARM_UP)
        points = list(zip(times, self.columns[name], strict=True))[first:]
        slopes = [(y - x) / (t - s) for i, (s, x) in enumerate(points) for t, y in points[i + 1 :]]
        return statistics.median(slopes) * (times[-1] - times[first])


def draw(samples: Samples, at_rest: Samples, slopes: dict[str, Any], path: Path) -> None:
    """Draw what was there all the time, as a line, and at rest, as dots; where that is possible."""
    try:
        from matplotlib import pyplot
    except ImportError:
        return
    figure, axes = pyplot.subplots(len(TOLERATED), 1, sharex=True, figsize=(9, 11))
    for axis, name in zip(axes, TOLERATED, strict=True):
        axis.plot(samples.columns["time"], samples.columns[name], linewidth=0.5, color="silver")
        axis.plot(at_rest.columns["time"], at_rest.columns[name], ".-")
        axis.set_title(f"{name}: {slopes[name]['growth']:+.1f} at rest over the run", fontsize=9)
        axis.axvline(at_rest.columns["time"][-1] * WARM_UP, color="grey", linestyle=":")
    axes[-1].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def be_churned(service: Service, seconds: float, seed: int, samples: Samples) -> dict[str, Counter[str]]:
    """Let the churn have its way, take samples meanwhile, and return what it has done."""
    description = json.dumps({**service.description(), "seconds": seconds, "seed": seed})
    command = [sys.executable, str(Path(__file__).with_name("churn.py")), description]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + seconds + 4 * PATIENCE_S
        while child.poll() is None and time.monotonic() < deadline:
            samples.add(service.counts())
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(min(1.0, seconds / 40))
        if child.poll() is None:
            service.problems.add("the churn has not ended")
            child.kill()
        printed, _ = child.communicate(timeout=PATIENCE_S)
    if child.returncode != 0:
        service.problems.add(f"the churn has ended with {child.returncode}")
        return {"deeds": Counter(), "connected": Counter(), "unexpected": Counter()}
    return {name: Counter(counts) for name, counts in json.loads(printed).items()}


def soak(seconds: float, out: Path | None) -> bool:
    """Run, sample, judge; whether all is well."""
    problems = Problems()
    logging.getLogger("pymuduo").addHandler(problems)
    samples, at_rest = Samples(), Samples()
    done: dict[str, Counter[str]] = {"deeds": Counter(), "connected": Counter(), "unexpected": Counter()}
    bouts = max(2, min(MAX_BOUTS, round(seconds / BOUT_S)))
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder), problems)
        for number in range(bouts):
            for name, counts in be_churned(service, seconds / bouts, number, samples).items():
                done[name] += counts
            at_rest.add(service.rest())
            service.go_on()
        accepted = {name: server.stats().accepted for name, server in service.servers.items()}
        rounds = [talker.rounds for talker in service.talkers]
        service.close()

    for what, times in done["unexpected"].items():
        problems.add(f"the churn met something unexpected: {what}", times)
    for name, connected in done["connected"].items():
        if accepted[name] < connected:
            problems.add(f"{name} has accepted {accepted[name]} of {connected} connections")
    if sum(done["connected"].values()) < seconds * ACCEPTED_A_SECOND:
        problems.add(f"only {dict(done['connected'])} connections in {seconds:g} s: somebody hangs")
    if not all(rounds):
        problems.add(f"the clients have been answered {rounds} times")
    slopes: dict[str, Any] = {}
    for name, tolerated in TOLERATED.items():
        growth = at_rest.growth(name)
        is_judged = name != "rss_kib" or seconds >= MEMORY_FROM_S
        slopes[name] = {"growth": round(growth, 2), "tolerated": tolerated if is_judged else None}
        if is_judged and growth > tolerated:
            problems.add(f"{name} have grown by {growth:.1f}; tolerated: {tolerated:g}")

    report = {
        "seconds": seconds,
        "compiled": COMPILED,
        "accepted": accepted,
        "deeds": done["deeds"],
        "at_rest": slopes,
        "problems": problems.counts,
    }
    print(json.dumps(report, indent=2))
    if out is not None:
        columns = {
            kind: {name: list(column) for name, column in some.columns.items()}
            for kind, some in {"samples": samples, "samples_at_rest": at_rest}.items()
        }
        out.with_suffix(".json").write_text(json.dumps({**report, **columns}))
        draw(samples, at_rest, slopes, out.with_suffix(".png"))
    return not problems.counts


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="looks whether anything grows under churn")
    parser.add_argument("--minutes", type=float, default=1.0, help="default %(default)s")
    parser.add_argument("--out", type=Path, help="where to write the samples and a picture, without a suffix")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in PLAIN_MALLOC.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **PLAIN_MALLOC})
    return 0 if soak(options.minutes * 60, options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
