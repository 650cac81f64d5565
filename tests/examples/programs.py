"""The example programs as processes: started, listened to, and always ended, each by its own process id."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

from conftest import PATIENCE_S, SLOWNESS, eventually, memory_bytes

EXAMPLES = Path(__file__).parents[2] / "examples"
# How much, in bytes, the kernel may hold between two TCP sockets whose buffers it lets grow by itself.
PAIR_IN_KERNEL = sum(int(Path("/proc/sys/net/ipv4", name).read_text().split()[2]) for name in ("tcp_rmem", "tcp_wmem"))


class Program:
    """One running example. Its output is collected line by line by threads, so that it never waits for us."""

    def __init__(self, path: str, *arguments: str, stdin: int = subprocess.PIPE) -> None:
        self._changed = threading.Condition()
        self._lines: dict[str, list[str]] = {"out": [], "err": []}
        self.process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / path), *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # so that what it starts can be ended with it
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._collect, args=(self.process.stdout, "out")),
            threading.Thread(target=self._collect, args=(self.process.stderr, "err")),
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.returncode is None:
            # Its children too: they hold our pipes. Not reaped yet, so the group's number is still its own.
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)
        for reader in self._readers:
            reader.join(PATIENCE_S)
        # Closing a stream that a reader waits in would wait for ever.
        assert not any(reader.is_alive() for reader in self._readers), "a child of the program holds its pipes"
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    @property
    def out(self) -> list[str]:
        """The lines printed so far."""
        with self._changed:
            return list(self._lines["out"])

    @property
    def err(self) -> str:
        """Everything logged so far, but what a loop says of a machine that is busy with other things."""
        with self._changed:
            return "\n".join(self._lines["err"])

    @property
    def port(self) -> int:
        """The port that a server says it listens on."""
        return int(self.wait_for_log(r"listens on \S+:(\d+),").group(1))

    def connect(self) -> socket.socket:
        """Return a blocking client of this server, with a time limit."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def wait_for_log(self, pattern: str, nth: int = 1) -> re.Match[str]:
        """Return the first, or *nth*, match of *pattern* in a line of the log, as soon as it is there."""
        numbers = itertools.count(1)
        return self._wait_for("err", lambda line: (m := re.search(pattern, line)) and next(numbers) == nth and m)

    def wait_for_line(self, line: str) -> None:
        """Wait until exactly this line has been printed."""
        self._wait_for("out", lambda printed: printed == line)

    def wait_for_printed(self, pattern: str) -> re.Match[str]:
        """Return the first match of *pattern* in a printed line, as soon as there is one."""
        return self._wait_for("out", lambda line: re.search(pattern, line))

    def wait_for_handlers(self) -> None:
        """Wait until SIGTERM would no longer end the program by itself."""
        status = Path(f"/proc/{self.process.pid}/status")
        bit = 1 << (signal.SIGTERM - 1)
        eventually(lambda: int(status.read_text().partition("SigCgt:")[2].split()[0], 16) & bit)

    @property
    def peak_bytes(self) -> int:
        """The most memory that the process has had so far."""
        return memory_bytes(self.process.pid, peak=True)

    def type(self, line: str) -> None:
        """Write a line to the program's standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end_input(self) -> None:
        """Close the program's standard input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait(self) -> int:
        """Wait until the program has ended by itself and return its exit code."""
        code = self.process.wait(PATIENCE_S)
        for reader in self._readers:
            reader.join(PATIENCE_S)
        return code

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal, as Ctrl-C does, wait for the end, and return the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def _collect(self, stream: IO[str], kind: str) -> None:
        for line in stream:
            if kind == "err" and SLOWNESS.search(line):
                continue
            with self._changed:
                self._lines[kind].append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _wait_for(self, kind: str, match: Callable[[str], re.Match[str] | bool | None]) -> re.Match[str]:
        seen = 0

        def look() -> object:
            nonlocal seen
            for line in self._lines[kind][seen:]:
                seen += 1
                if found := match(line):
                    return found
            return None

        with self._changed:
            found = self._changed.wait_for(look, PATIENCE_S)
            assert found, f"waited in vain; out: {self._lines['out'][-20:]}, log: {self._lines['err'][-20:]}"
        return found  # type: ignore[return-value]


@contextlib.contextmanager
def running(path: str, *arguments: str) -> Iterator[Program]:
    """Run a server on a port of the kernel's choice for the length of a block; it must not have tripped."""
    with Program(path, "--port", "0", *arguments) as server:
        assert server.port
        yield server
        if server.process.poll() is None:
            assert server.end() == 0, server.err
        assert "Traceback" not in server.err
