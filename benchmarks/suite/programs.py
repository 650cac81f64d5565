"""The programs of the suite: the C ones are built when needed; servers are started, watched and ended."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SERVER_CPU, LOAD_CPU = 0, 1
_START_LIMIT_S = 20.0


def build(name: str) -> str:
    """Return the path of a C program, compiled if its source is newer.

    Raises:
        RuntimeError: there is no C compiler, or it refused the program.
    """
    source, program = ROOT / "c" / f"{name}.c", ROOT / "build" / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(exist_ok=True)
        command = [
            os.environ.get("CC", "gcc"),
            "-O2",
            "-Wall",
            "-Wextra",
            "-std=gnu11",
            str(source),
            "-o",
            str(program),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise RuntimeError(f"no C compiler: {command[0]} not found") from None
        except subprocess.CalledProcessError as e:
            raise RuntimeError(f"{' '.join(command)} failed:\n{e.stderr}") from None
    return str(program)


@dataclass(frozen=True)
class Peer:
    """A server to measure.

    Attributes:
        name: in tables. program: path of a Python file below ``benchmarks``, or the name of a C program.
        options: added to the command line. needs: the Python module without which it can't run.
    """

    name: str
    program: str
    options: tuple[str, ...] = ()
    needs: str | None = None

    def absence(self) -> str | None:
        """Return why it can't run here, None if it can."""
        if self.needs is not None and importlib.util.find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        return None

    def command(self) -> list[str]:
        """Return the command line that starts it, without pinning."""
        if self.program.endswith(".py"):
            return [sys.executable, str(ROOT / self.program), *self.options]
        return [build(self.program), *self.options]


class Server:
    """A peer as a process, pinned to the server's processor; a context manager."""

    def __init__(self, peer: Peer, cpu: int | None = SERVER_CPU) -> None:
        command = peer.command() + ([] if cpu is None else ["--cpu", str(cpu)])
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._output = self._process.stdout
        readable, _, _ = select.select([self._output], [], [], _START_LIMIT_S)
        line = self._output.readline() if readable else ""
        if not line.startswith("listening on "):
            self.end()
            raise RuntimeError(f"{peer.name} did not start: {line!r}")
        self.port = int(line.rsplit(":", 1)[1])

    def cpu_times(self) -> tuple[float, float]:
        """Return the user and system seconds it has used; the kernel counts in ticks of 10 ms."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = os.sysconf("SC_CLK_TCK")
        return int(fields[11]) / ticks, int(fields[12]) / ticks

    def end(self) -> str:
        """Let it end, and return what it printed meanwhile."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            rest, _ = self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            rest, _ = self._process.communicate()
        return rest

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()


def load(port: int, duration: float, options: tuple[str, ...] = (), cpu: int | None = LOAD_CPU) -> dict[str, Any]:
    """Drive the server at *port* for *duration* seconds and return what the load generator measured.

    Raises:
        RuntimeError: a reply was wrong, or the server failed.
    """
    command = [build("loadgen"), "--port", str(port), "--duration", str(duration), "--json", *options]
    if cpu is not None:
        command += ["--cpu", str(cpu)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=duration + 90, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(peer: Peer, duration: float, options: tuple[str, ...]) -> dict[str, Any]:
    """Start a peer, drive it, end it; the load generator's figures and the server's CPU time a message."""
    with Server(peer) as server:
        load(server.port, 0.3, options)  # warm: code paths, allocator, sockets
        user, system = server.cpu_times()
        started = time.monotonic()
        result = load(server.port, duration, (*options, "--warmup", "0"))
        user_after, system_after = server.cpu_times()
        result["wall_s"] = time.monotonic() - started
        result["user_us_per_message"] = (user_after - user) / result["messages"] * 1e6
        result["system_us_per_message"] = (system_after - system) / result["messages"] * 1e6
    return result
