"""rolling_restart.py: a restart under load loses no request, whoever asks and however."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from conftest import PATIENCE_S, eventually
from programs import EXAMPLES, Program
from targets import nobody

PATH = "rolling_restart.py"


class Client(threading.Thread):
    """Asks without a pause until it is told to stop; keeps what went wrong."""

    def __init__(self, port: int, keep_alive: bool) -> None:
        super().__init__()
        self.port = port
        self.keep_alive = keep_alive
        self.answered = 0
        self.workers: set[int] = set()
        self.error: BaseException | None = None
        self.is_told = threading.Event()

    def run(self) -> None:
        try:
            while not self.is_told.is_set():
                self.visit()
        except BaseException as e:
            self.error = e

    def visit(self) -> None:
        """Connect, and ask once, or until the server says that it was the last time."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as connection:
            answers = connection.makefile("rb")
            while True:
                question = b"question %d" % self.answered
                connection.sendall(question + b"\n")
                answer = answers.readline()
                assert answer.endswith(b" " + question + b"\n"), f"{question!r} was answered with {answer!r}"
                self.answered += 1
                is_last = answer.startswith(b"last ")
                self.workers.add(int(answer.removeprefix(b"last ").split()[0]))
                if is_last or not self.keep_alive or self.is_told.is_set():
                    return

    def stop(self) -> None:
        self.is_told.set()
        self.join(PATIENCE_S)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_restarts_under_load_lose_no_request():
    with Program(PATH, "--port", "0") as program:
        clients = [Client(program.port, keep_alive) for keep_alive in (True, False, True, False)]
        current = int(program.wait_for_log(r"worker (\d+) serves")[1])
        for client in clients:
            client.start()
        try:
            for _ in range(3):
                before = current
                eventually(lambda worker=before: all(worker in c.workers or c.error for c in clients))
                program.process.send_signal(signal.SIGHUP)
                current = eventually(lambda old=before: next_worker(program, old))
                eventually(lambda worker=current: all(worker in c.workers or c.error for c in clients))
                eventually(lambda worker=before: not is_running(worker), "the old worker stays")
        finally:
            for client in clients:
                client.is_told.set()
        for client in clients:
            client.stop()
            assert len(client.workers) == 4
        assert program.end(signal.SIGTERM) == 0
        assert "Traceback" not in program.err


def next_worker(program: Program, old: int) -> int:
    """Return the worker that serves now, 0 if it is still the old one."""
    last = [line for line in program.err.splitlines() if line.endswith(" serves")][-1]
    worker = int(last.split()[-2])
    return 0 if worker == old else worker


def test_a_worker_that_dies_is_replaced():
    with Program(PATH, "--port", "0") as program:
        worker = int(program.wait_for_log(r"worker (\d+) serves")[1])
        os.kill(worker, signal.SIGKILL)
        other = eventually(lambda: next_worker(program, worker))
        client = Client(program.port, keep_alive=False)
        client.visit()
        assert client.workers == {other}
        assert program.end(signal.SIGINT) == 0


def test_a_new_version_that_does_not_come_up_changes_nothing(tmp_path: Path):
    copy = tmp_path / PATH
    works = (EXAMPLES / PATH).read_text()
    copy.write_text(works)
    with Program(str(copy), "--port", "0") as program:
        worker = int(program.wait_for_log(r"worker (\d+) serves")[1])
        copy.write_text("raise SystemExit(1)\n")
        for count in (1, 2):
            program.process.send_signal(signal.SIGHUP)
            eventually(lambda count=count: program.err.count("did not come up") == count)
            client = Client(program.port, keep_alive=False)
            client.visit()
            assert client.workers == {worker}
        copy.write_text(works)
        program.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: next_worker(program, worker))
        assert program.end(signal.SIGTERM) == 0


def test_a_worker_is_tried_again_until_one_serves(tmp_path: Path):
    copy = tmp_path / PATH
    works = (EXAMPLES / PATH).read_text()
    copy.write_text(works)
    with Program(str(copy), "--port", "0") as program:
        worker = int(program.wait_for_log(r"worker (\d+) serves")[1])
        copy.write_text("raise SystemExit(1)\n")
        os.kill(worker, signal.SIGKILL)
        program.wait_for_log("did not come up")
        waiting = Client(program.port, keep_alive=False)
        waiting.start()
        copy.write_text(works)
        eventually(lambda: waiting.answered or waiting.error)
        waiting.stop()
        assert program.end(signal.SIGTERM) == 0


def test_a_worker_ends_with_a_supervisor_that_is_killed():
    port = nobody().port
    with Program(PATH, "--port", str(port)) as program:
        program.wait_for_log(r"worker (\d+) serves")
        program.process.kill()
        assert program.process.wait(PATIENCE_S) == -signal.SIGKILL
        eventually(lambda: is_refused(port))  # nobody keeps the next one from listening there


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_with_its_worker(number):
    with Program(PATH, "--port", "0") as program:
        worker = int(program.wait_for_log(r"worker (\d+) serves")[1])
        assert program.end(number) == 0
        assert not is_running(worker)
