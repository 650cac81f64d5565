"""The documentation does what it says: its programs run, its links lead somewhere, its reference is up to date.

A Python block is at least compiled. An HTML comment before it, which no reader sees, asks for more:

``<!-- runs -->``
    It is a program that ends by itself, with code 0. A ``text`` block right after it is what it prints.
``<!-- serves: b"hello" -> b"HELLO" -->``
    It is a server: a client sends the first bytes and receives the second ones; then Ctrl-C ends it. The port in
    the program is replaced by one of the kernel's choice.
"""

from __future__ import annotations

import ast
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from certificates import client_context, write_files
from conftest import PATIENCE_S, eventually, receive_all, receive_exactly

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(
    r"^(?:<!-- (?P<order>(?:runs|serves)\b[^\n]*?) -->\n+)?"
    r"```python\n(?P<code>.*?)^```\n"
    r"(?:\n```text\n(?P<printed>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
TEST = re.compile(r"^def (test_\w+)\(", re.MULTILINE)
LISTENS = re.compile(r"listens on \S+:(\d+),")
PORT = re.compile(r"(InetAddress\.(?:any|loopback)\()\d+")


@dataclass(frozen=True)
class Snippet:
    """One Python block of a page."""

    where: str
    order: str
    code: str
    printed: str | None

    def __str__(self) -> str:
        return self.where


def snippets_of(page: Path) -> list[Snippet]:
    text = page.read_text()
    found = []
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("code")) + 1
        where = f"{page.relative_to(ROOT)}:{line}"
        found.append(Snippet(where, block["order"] or "", block["code"], block["printed"]))
    return found


SNIPPETS = [snippet for page in PAGES for snippet in snippets_of(page)]
PROGRAMS = [snippet for snippet in SNIPPETS if snippet.order == "runs"]
SERVERS = [snippet for snippet in SNIPPETS if snippet.order.startswith(("serves: ", "serves TLS: "))]


class Program:
    """A snippet that runs as a program of its own, in a process group of its own, and is always ended."""

    def __init__(self, code: str, folder: Path) -> None:
        self.code = code
        path = folder / "snippet.py"
        # A server logs its address, at a level that a program has to ask for.
        path.write_text("import logging; logging.basicConfig(level=logging.INFO)\n" + PORT.sub(r"\g<1>0", code))
        if "key.pem" in code:
            write_files(folder)
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                cwd=folder,
            )

    def wait(self) -> tuple[int, str]:
        """Wait for the end and return the exit code and what was printed."""
        printed, _ = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, printed

    def end(self) -> int:
        """Do what Ctrl-C does to the program (not to its children, who may be just starting); return the exit code."""
        if "signal.SIGTERM" in self.code or "quit_on_signals" in self.code:
            # One of several processes may answer before this one has got as far as installing its handlers.
            eventually(lambda: catches(self.process.pid, signal.SIGTERM), "the program installs no handler")
        self.process.send_signal(signal.SIGINT)
        return self.wait()[0]

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Program]]:
    """Return a function that starts a snippet's code."""
    programs: list[Program] = []

    def start_program(code: str) -> Program:
        programs.append(Program(code, tmp_path))
        return programs[-1]

    yield start_program
    for program in programs:
        program.kill()


def port_of(program: Program) -> int:
    def look() -> re.Match[str] | None:
        assert program.process.poll() is None, program.log.read_text()
        return LISTENS.search(program.log.read_text())

    found = eventually(look, "the server never listened")
    assert found is not None
    return int(found[1])


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)


def test_every_kind_of_check_has_something_to_do():
    assert PROGRAMS
    assert SERVERS
    assert {s.order for s in SNIPPETS} == {"", *(s.order for s in PROGRAMS), *(s.order for s in SERVERS)}


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_a_python_block_is_python(snippet):
    compile(snippet.code, snippet.where, "exec", dont_inherit=True)


@pytest.mark.parametrize("snippet", PROGRAMS, ids=str)
def test_a_program_runs_and_prints_what_the_page_says(snippet, start):
    program = start(snippet.code)
    code, printed = program.wait()
    log = program.log.read_text()
    assert code == 0, log
    if snippet.printed is not None:
        assert printed == snippet.printed, log


@pytest.mark.parametrize("snippet", SERVERS, ids=str)
def test_a_server_answers_as_the_page_says_and_ends_on_ctrl_c(snippet, start):
    kind, exchange = snippet.order.split(": ", 1)
    sent, answer = map(ast.literal_eval, exchange.split(" -> "))
    program = start(snippet.code)
    with (
        connect(port_of(program)) as sock,
        client_context().wrap_socket(sock, server_hostname="localhost") if kind == "serves TLS" else sock as client,
    ):
        client.sendall(sent)
        assert receive_exactly(client, len(answer)) == answer
        code = program.end()
    log = program.log.read_text()
    if code == 0:
        assert "Traceback" not in log
    else:  # a program that does not catch Ctrl-C ends by it
        assert code == -signal.SIGINT, log
        assert log.endswith("KeyboardInterrupt\n"), log
    assert "ERROR:pymuduo" not in log, log


def test_the_tutorials_last_server_is_a_chat(start):
    last = [s for s in SERVERS if s.where.startswith("docs/tutorial/chat.md")][-1]
    program = start(last.code)
    port = port_of(program)
    with connect(port) as ann, connect(port) as bob:
        ann.sendall(b"/name ann\n")
        assert receive_exactly(ann, 13) == b"* ann joined\n"
        taken, heard = b"* the name ann is taken\n", b"* bob joined\nbob: hello\n"
        bob.sendall(b"/name bob\nhel")
        bob.sendall(b"lo\n")
        assert receive_exactly(ann, len(heard)) == heard
        received = receive_exactly(bob, len(heard))  # bob may have come before ann had said a name
        if received.startswith(b"* ann joined\n"):
            received = received[13:] + receive_exactly(bob, 13)
        assert received == heard
        bob.sendall(b"/name ann\n")
        assert receive_exactly(bob, len(taken)) == taken
        bob.sendall(b"/quit\n")
        assert receive_all(bob) == b""
        assert receive_exactly(ann, 11) == b"* bob left\n"
        assert program.end() == 0
        assert receive_all(ann) == b""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    for link in LINK.findall(FENCED.sub("", page.read_text())):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: no such file"
        if anchor:
            headings = [
                re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
                for heading in HEADING.findall(FENCED.sub("", target.read_text()))
            ]
            assert anchor in headings, f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_that_a_page_names_exists(page):
    tests = {name for path in (ROOT / "tests").rglob("test_*.py") for name in TEST.findall(path.read_text())}
    named = set(re.findall(r"`(test_\w+)`", page.read_text()))
    assert named <= tests
    if page.name == "reliability.md":
        assert len(named) > 30


def test_the_reference_is_up_to_date():
    check = [sys.executable, str(ROOT / "docs" / "generate_reference.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
