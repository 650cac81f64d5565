"""What holds for every example program: each is found here by itself, by its ``__main__``."""

from __future__ import annotations

import ast
import contextlib
import functools
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import PATIENCE_S
from programs import EXAMPLES, Program, running

PROGRAMS = tuple(sorted(str(p.relative_to(EXAMPLES)) for p in EXAMPLES.rglob("*.py") if "__main__" in p.read_text()))

# What is no server that runs with --port and --threads alone: its arguments, and its exit code after Ctrl-C, which is 1
# if it has not got what it was started for. At {port} there is a peer that accepts and never says a word.
OTHERS = (
    ("chat/client.py", "--port {port}", 0),
    ("chat/loadtest.py", "--port {port} --clients 2", 0),
    ("finger/finger01.py", "", 0),
    ("hub/pub.py", "--port {port} topic -", 0),
    ("hub/pub.py", "--port {port} topic content", 0),
    ("hub/sub.py", "--port {port} topic", 0),
    ("pingpong/bench.py", "--writes 1000000000", 1),
    ("pingpong/client.py", "--port {port} --sessions 2 --threads 1", 0),
    ("protobuf/client.py", "--port {port}", 1),
    ("rolling_restart.py", "--port 0", 0),
    ("roundtrip.py", "--port 0", 0),
    ("sudoku/batch.py", "--port {port}", 0),
    ("sudoku/batch.py", "--local {folder}/puzzles", 0),
    ("sudoku/loadtest.py", "--port {port}", 0),
    ("sudoku/pipeline.py", "--port {port}", 0),
    ("time_client.py", "--port {port}", 1),
    ("tls_echo.py", "--port 0 --certificate {folder}/cert.pem --key {folder}/key.pem", 0),
    ("ttcp.py", "--receive --port 0", 0),
    ("ttcp.py", "--transmit 127.0.0.1 --port {port}", 1),
    ("uptime.py", "--port {port}", 0),
    ("wordcount/hasher.py", "{folder}/words --to 127.0.0.1:{port}", 1),
    ("wordcount/receiver.py", "--port 0 --out {folder}/totals", 1),
)
SERVERS = tuple(path for path in PROGRAMS if path not in {path for path, _, _ in OTHERS})
OTHER_SERVERS = tuple((path, arguments) for path, arguments, _ in OTHERS if "--port 0" in arguments)

NUMBER = re.compile(r'add_argument\(\s*"(--[a-z-]+)", type=(int|float|seconds)')
NUMBERS = {kind for path in EXAMPLES.rglob("*.py") for kind in NUMBER.findall(path.read_text())}

UNUSED = {"finger/finger01.py": {("--port", "int")}, "roundtrip.py": {("--every", "float")}}  # without --to

MISUSE = (
    ("chargen.py", "--interval 0"),
    ("discard.py", "--interval 0"),
    ("hub/hub.py", "--bridge nowhere"),
    ("hub/hub.py", "--bridge nats://127.0.0.1:x"),
    ("idle_echo.py", "--idle 0"),
    ("max_connections.py", "--most 0"),
    ("memcached/server.py", "--connections 0"),
    ("memcached/server.py", "--memory 0"),
    ("multiplexer/demultiplexer.py", "--backend nowhere"),
    ("multiplexer/multiplexer.py", "--backend 127.0.0.1:99999"),
    ("pingpong/bench.py", "--rounds 0"),
    ("pingpong/client.py", "--sessions 0"),
    ("proxies/load_balancer.py", "--backend no.such.name.invalid:80"),
    ("proxies/load_balancer.py", "--fall 0"),
    ("proxies/load_balancer.py", "--rise 0"),
    ("proxies/socks.py", "--host nowhere"),
    ("roundtrip.py", "--to 127.0.0.1:1 --every 0"),
    ("roundtrip.py", "--to nowhere"),
    ("sudoku/batch.py", "--batches 0"),
    ("sudoku/server_hybrid.py", "--workers 0"),
    ("sudoku/server_multiloop.py", "--interval 0"),
    ("sudoku/server_prod.py", "--max-queue 0"),
    ("tcp_relay.py", "--to nowhere"),
    ("time_client.py", "--timeout 0"),
    ("tls_echo.py", "--certificate /nonexistent/cert.pem --key /nonexistent/key.pem"),
    ("ttcp.py", "--receive --number 0"),
    ("uptime.py", "--silence 0"),
    ("wordcount/hasher.py", "words --to nowhere"),
    ("wordcount/receiver.py", "--out totals --senders 0"),
    ("wordcount/receiver.py", "--out /nonexistent/totals"),
)


def arguments_of(template: str, folder: Path, port: int = 1) -> list[str]:
    """Return the words of a template, its places filled."""
    return [word.format(folder=folder, port=port) for word in template.split()]


@functools.cache
def help_of(path: str) -> str:
    """Return what a program says of itself."""
    with Program(path, "--help") as program:
        assert program.wait() == 0
        assert program.err == ""
        return "\n".join(program.out)


def assert_turned_down(program: Program) -> str:
    """Return the one line in which a program says what is wrong with its arguments."""
    assert program.wait() == 2
    assert "Traceback" not in program.err
    (line,) = (line for line in program.err.splitlines() if ": error: " in line)
    return line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with what some programs read: more puzzles than can be solved in a test, and some words."""
    puzzles = (EXAMPLES / "sudoku/puzzles.txt").read_bytes()
    (tmp_path / "puzzles").write_bytes(puzzles * 200)
    (tmp_path / "words").write_bytes(b"some words, and some more")
    return tmp_path


@contextlib.contextmanager
def silent_peer() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        yield listener


@pytest.mark.parametrize("path", PROGRAMS)
def test_help_tells_how_to_use_it(path: str) -> None:
    text = help_of(path)
    assert text.startswith("usage: ")
    if path in SERVERS:
        assert "--port" in text
        assert "--threads" in text


@pytest.mark.parametrize("path", PROGRAMS)
def test_begins_with_a_docstring_that_says_what_it_teaches(path: str) -> None:
    assert "What it teaches: " in (ast.get_docstring(ast.parse((EXAMPLES / path).read_text())) or "")


def test_the_tour_leads_to_every_program_and_nowhere_else() -> None:
    tour = (EXAMPLES / "README.md").read_text()
    for table_row in re.findall(r"^\| (`.+?) \|", tour, re.MULTILINE):
        first, *others = re.findall(r"`(.+?\.py)`", table_row)
        folder = (EXAMPLES / first).parent
        for path in (EXAMPLES / first, *((folder if "/" not in other else EXAMPLES) / other for other in others)):
            assert path.is_file(), f"{path} is on the tour, but not here"
    for path in PROGRAMS:
        folder, _, name = path.rpartition("/")
        if not re.fullmatch(r"finger0[2-6]\.py", name):
            assert f"`{path}`" in tour or re.search(rf"`{folder}/.*`{name}`", tour), path


# --- how it ends ---


@pytest.mark.parametrize("threads", ["0", "2"])
@pytest.mark.parametrize("path", SERVERS)
def test_ctrl_c_ends_a_server_with_code_0_and_no_traceback(path: str, threads: str) -> None:
    with Program(path, "--port", "0", "--threads", threads) as server, server.connect(), server.connect() as second:
        second.sendall(bytes(1000))
        assert server.end(signal.SIGINT) == 0
        assert "Traceback" not in server.err
        server.wait_for_log("stopped")


@pytest.mark.parametrize("path", SERVERS)
def test_sigterm_ends_a_server_as_ctrl_c_does(path: str) -> None:
    with Program(path, "--port", "0", "--threads", "1") as server, server.connect():
        assert server.end(signal.SIGTERM) == 0
        assert "Traceback" not in server.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("path", "template", "code"), OTHERS)
def test_every_other_program_ends_as_well(
    path: str, template: str, code: int, number: signal.Signals, folder: Path
) -> None:
    with silent_peer() as listener, contextlib.ExitStack() as stack:
        program = stack.enter_context(Program(path, *arguments_of(template, folder, listener.getsockname()[1])))
        if "{port}" in template:
            stack.enter_context(listener.accept()[0])
        program.wait_for_handlers()
        assert program.end(number) == code
        assert "Traceback" not in program.err
        if code != 0:
            assert program.err.splitlines()[-1] != ""


@pytest.mark.parametrize("path", SERVERS)
def test_a_server_outlives_peers_that_leave_in_every_way(path: str) -> None:
    with running(path, "--threads", "1") as server:
        for last_words in (b"", b"\0", bytes(100_000)):
            with server.connect() as peer:
                peer.sendall(last_words)
        with server.connect():
            pass


# --- what can't be: one line tells it, and the program ends ---


@pytest.mark.parametrize(("path", "template"), [*((path, "--port 0") for path in SERVERS), *OTHER_SERVERS])
def test_a_port_that_is_taken_is_told_in_a_line(path: str, template: str, tmp_path: Path) -> None:
    kind = socket.SOCK_DGRAM if path == "roundtrip.py" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = str(taken.getsockname()[1])
        with Program(path, *arguments_of(template, tmp_path), "--port", port) as program:
            line = assert_turned_down(program)
    assert f":{port}" in line
    assert "in use" in line


@pytest.mark.parametrize("path", PROGRAMS)
@pytest.mark.timeout(600)
def test_numbers_out_of_range_are_told_in_a_line(path: str, folder: Path) -> None:
    template = next((template for other, template, _ in OTHERS if other == path), "--port 0")
    used = NUMBERS - UNUSED.get(path, set())
    taken = sorted(kind for kind in used if re.search(rf"^ +{kind[0]}\b(?!-)", help_of(path), re.MULTILINE))
    wrong = [(option, "99999" if option == "--port" else "-1") for option, _ in taken]
    wrong += [(option, "nan") for option, kind in taken if kind != "int"]
    for at in range(0, len(wrong), 3):
        at_once = wrong[at : at + 3]
        with contextlib.ExitStack() as stack:
            programs = [
                stack.enter_context(Program(path, *arguments_of(template, folder), *option_and_value))
                for option_and_value in at_once
            ]
            for program, option_and_value in zip(programs, at_once, strict=True):
                assert assert_turned_down(program), option_and_value


@pytest.mark.parametrize(("path", "arguments"), MISUSE)
def test_what_makes_no_sense_is_told_in_a_line(path: str, arguments: str) -> None:
    with Program(path, *([] if "roundtrip" in path else ["--port", "0"]), *arguments.split()) as program:
        assert_turned_down(program)
