"""The servers under test: a table of peers, and one of them as a running process."""

from __future__ import annotations

import importlib.util
import os
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
        module: the Python module it needs; not there, the peer is absent. python: the oldest Python that it runs on.
        is_main: takes part in every workload of its services, not only in those that are for all.
        is_pinned: may be kept on one processor; one that has several loops must not.
    """

    name: str
    program: str
    services: Mapping[str, Sequence[str]] = field(default_factory=dict)
    module: str | None = None
    python: tuple[int, int] = (3, 11)
    is_main: bool = False
    is_pinned: bool = True

    def command(self, service: str) -> list[str]:
        """Return the command line that serves *service*; ``PYTHONPATH`` must have the directory of this suite.

        Raises:
            PeerAbsentError: it can't run on this machine.
        """
        if sys.version_info < self.python:
            raise PeerAbsentError(f"{self.module or self.name} needs Python {'.'.join(map(str, self.python))}")
        if self.module is not None and importlib.util.find_spec(self.module) is None:
            raise PeerAbsentError(f"{self.module} is not installed")
        options = self.services[service]
        if self.program.endswith(".py"):
            return [sys.executable, "-m", f"peers.{self.program.removesuffix('.py')}", *options]
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
        cpu: the processor to run on, if the peer can be pinned; None: any.

    Raises:
        PeerAbsentError, PeerFailedError: see there.
    """

    def __init__(self, peer: Peer, service: str, cpu: int | None = None) -> None:
        command = peer.command(service)
        if cpu is not None and peer.is_pinned:
            command += ["--cpu", str(cpu)]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._name = peer.name
        # Not a pipe: one that nobody reads could fill, and block the server. Closed when the block ends.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
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


def _modes(*services: str, options: Sequence[str] = (), **others: str) -> dict[str, Sequence[str]]:
    """Return the options for services whose modes have the same names, and for *others*: a service and its mode."""
    modes = {service: service for service in services} | others
    return {service: ("--mode", mode, *options) for service, mode in modes.items()}


def _with_tls(options: Sequence[str] = (), **modes: str) -> dict[str, Sequence[str]]:
    """Return the options for services over TLS, which are named for that."""
    return {f"tls-{service}": ("--mode", mode, "--tls", *options) for service, mode in modes.items()}


def _on(loop: str) -> tuple[str, str]:
    return ("--loop", loop)


PEERS = (
    Peer("raw C epoll", "echo_epoll", _modes("echo", "line", "frame", "broadcast"), is_main=True),
    Peer(
        "pymuduo",
        "pymuduo_echo.py",
        _modes("echo", "line", "frame", "broadcast", "sudoku") | _with_tls(echo="echo", line="line"),
        module="pymuduo",
        is_main=True,
    ),
    Peer(
        "pymuduo, batches",
        "pymuduo_echo.py",
        _modes(line="line-batch", frame="frame-batch") | _with_tls(line="line-batch"),
        module="pymuduo",
        is_main=True,
    ),
    Peer("pymuduo, split by hand", "pymuduo_echo.py", _modes(line="line-by-hand"), module="pymuduo", is_main=True),
    Peer(
        "pymuduo, two loops",
        "pymuduo_echo.py",
        _modes("broadcast", "sudoku", options=("--threads", "2")),
        module="pymuduo",
        is_main=True,
        is_pinned=False,
    ),
    Peer(
        "uvloop",
        "asyncio_echo.py",
        _modes("echo", "line", "frame", "broadcast", "sudoku", options=_on("uvloop"))
        | _with_tls(_on("uvloop"), echo="echo", line="line"),
        module="uvloop",
        is_main=True,
    ),
    Peer(
        "uvloop, joined by hand",
        "asyncio_echo.py",
        _modes(line="line-joined", frame="frame-joined", options=_on("uvloop"))
        | _with_tls(_on("uvloop"), line="line-joined"),
        module="uvloop",
        is_main=True,
    ),
    Peer(
        "uvloop, lines untouched",
        "asyncio_echo.py",
        _modes(line="line-whole", options=_on("uvloop")),
        module="uvloop",
        is_main=True,
    ),
    Peer(
        "uvloop, buffered protocol",
        "asyncio_echo.py",
        _modes(echo="echo-buffered", options=_on("uvloop")),
        module="uvloop",
        is_main=True,
    ),
    Peer(
        "asyncio",
        "asyncio_echo.py",
        _modes("echo", "line", "frame", "broadcast", "sudoku") | _with_tls(echo="echo", line="line"),
    ),
    Peer("rloop", "asyncio_echo.py", _modes("echo", "line", "frame", options=_on("rloop")), module="rloop"),
    Peer(
        "zuvloop",
        "asyncio_echo.py",
        _modes("echo", "line", "frame", options=_on("zuvloop")),
        module="zuvloop",
        python=(3, 14),
    ),
    Peer(
        "streams on uvloop",
        "asyncio_streams.py",
        _modes("echo", "line", "frame", options=_on("uvloop")),
        module="uvloop",
    ),
    Peer("streams on asyncio", "asyncio_streams.py", _modes("echo", "line", "frame")),
    Peer("gevent", "gevent_echo.py", _modes("echo", "line", "frame"), module="gevent"),
    Peer("Twisted", "twisted_echo.py", _modes("echo", "line", "frame"), module="twisted"),
    Peer("Tornado", "tornado_echo.py", _modes("echo", "line", "frame"), module="tornado"),
)
