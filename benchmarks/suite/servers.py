"""The servers under test: a table of peers, and one of them as a running process."""

from __future__ import annotations

import importlib.util
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from suite.build import ROOT, BuildError, c_program

_START_LIMIT_S = 15.0
_STOP_LIMIT_S = 10.0


@dataclass(frozen=True)
class Peer:
    """A server program, and the services it can give.

    Attributes:
        name: as it stands in tables.
        program: a file below ``peers/`` (Python), or below ``c/`` (its name without the suffix).
        services: what it can serve → the options that make it do so. Every program takes ``--port`` and ``--cpu``
            and prints ``listening on 127.0.0.1:PORT`` when it is ready.
        module: the Python module it needs; not there, the peer is absent.
    """

    name: str
    program: str
    services: Mapping[str, Sequence[str]] = field(default_factory=dict)
    module: str | None = None

    def command(self, service: str) -> list[str]:
        """Return the command line that serves *service*.

        Raises:
            PeerAbsentError: it can't run on this machine.
        """
        if self.module is not None and importlib.util.find_spec(self.module) is None:
            raise PeerAbsentError(f"{self.module} is not installed")
        options = self.services[service]
        if self.program.endswith(".py"):
            return [sys.executable, str(ROOT / "peers" / self.program), *options]
        try:
            return [str(c_program(self.program)), *options]
        except BuildError as e:
            raise PeerAbsentError(str(e)) from None


class PeerAbsentError(Exception):
    """A peer can't run here; the message says why."""


class PeerFailedError(Exception):
    """A peer did not start, died, or did not end."""


class Server:
    """A peer as a process, until the end of the ``with`` block.

    Args:
        cpu: the processor to run on; None: any.

    Raises:
        PeerAbsentError, PeerFailedError: see there.
    """

    def __init__(self, peer: Peer, service: str, cpu: int | None = None) -> None:
        command = [*peer.command(service), *(() if cpu is None else ("--cpu", str(cpu)))]
        self._name = peer.name
        # Not a pipe: one that nobody reads could fill, and block the server. Closed when the block ends.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._errors, text=True)
        self.pid = self._process.pid
        try:
            self.port = self._wait_until_ready()
        except BaseException:
            self._close()
            raise

    def stop(self) -> str:
        """End it with SIGTERM, and return what it printed since it was ready.

        Raises:
            PeerFailedError: it had died before, did not end in time, or ended with an error.
        """
        self._process.terminate()
        try:
            printed, _ = self._process.communicate(timeout=_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._kill()
            raise PeerFailedError(f"{self._name} did not end within {_STOP_LIMIT_S:g} s of SIGTERM") from None
        if self._process.returncode != 0:
            raise PeerFailedError(f"{self._name} ended with status {self._process.returncode}{self._last_words()}")
        return printed

    def _wait_until_ready(self) -> int:
        assert self._process.stdout is not None
        deadline = time.monotonic() + _START_LIMIT_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            readable = selector.select(deadline - time.monotonic())
        line = self._process.stdout.readline().rstrip("\n") if readable else ""
        before, _, port = line.rpartition(":")
        if not before.startswith("listening on ") or not port.isdecimal():
            self._kill()
            said = f"printed {line!r}" if line else f"printed nothing in {_START_LIMIT_S:g} s at most"
            raise PeerFailedError(f"{self._name} did not start: it {said}{self._last_words()}")
        return int(port)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return f"; last error: {lines[-1]}" if lines else ""

    def _kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _close(self) -> None:
        self._kill()
        self._errors.close()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()


_MODES = {"echo": ("--mode", "echo"), "line": ("--mode", "line")}

PEERS = (
    Peer("raw C epoll", "echo_epoll", {"echo": (), "line": ()}),
    Peer("pymuduo", "pymuduo_echo.py", _MODES, module="pymuduo"),
    Peer(
        "uvloop",
        "asyncio_echo.py",
        {service: (*options, "--loop", "uvloop") for service, options in _MODES.items()},
        module="uvloop",
    ),
    Peer(
        "uvloop, joined by hand",
        "asyncio_echo.py",
        {"line": ("--mode", "line-joined", "--loop", "uvloop")},
        module="uvloop",
    ),
    Peer("asyncio", "asyncio_echo.py", _MODES),
)
