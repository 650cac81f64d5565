"""What holds for every example program."""

from __future__ import annotations

import ast
import re
import signal

import pytest

from programs import EXAMPLES, Program, running

SERVERS = (
    "echo.py",
    "discard.py",
    "chargen.py",
    "daytime.py",
    "time_server.py",
    "idle_echo.py",
    "tcp_relay.py",
    "chat/server.py",
    "pingpong/server.py",
    "max_connections.py",
    "protobuf/server.py",
    "filetransfer/download.py",
    "filetransfer/download2.py",
    "filetransfer/download3.py",
    "hub/hub.py",
    "redis/server.py",
    "memcached/server.py",
    "chat/server_threaded.py",
    "chat/server_threaded_efficient.py",
    "chat/server_threaded_highperformance.py",
    "chat/web_gateway.py",
    "proxies/socks.py",
    "proxies/http_connect.py",
    "proxies/load_balancer.py",
    "multiplexer/multiplexer.py",
    "multiplexer/demultiplexer.py",
    "sudoku/server_basic.py",
    "sudoku/server_multiloop.py",
    "sudoku/server_threadpool.py",
    "sudoku/server_hybrid.py",
    "sudoku/server_prod.py",
    "finger/finger02.py",
    "finger/finger03.py",
    "finger/finger04.py",
    "finger/finger05.py",
    "finger/finger06.py",
    "finger/finger07.py",
)
PROGRAMS = (
    *SERVERS,
    "chat/client.py",
    "chat/loadtest.py",
    "finger/finger01.py",
    "hub/pub.py",
    "hub/sub.py",
    "pingpong/client.py",
    "protobuf/client.py",
    "rolling_restart.py",
    "roundtrip.py",
    "sudoku/batch.py",
    "sudoku/loadtest.py",
    "sudoku/pipeline.py",
    "time_client.py",
    "tls_echo.py",
    "ttcp.py",
    "uptime.py",
    "wordcount/receiver.py",
)


@pytest.mark.parametrize("path", PROGRAMS)
def test_help_tells_the_options_and_exits_with_0(path: str) -> None:
    with Program(path, "--help") as program:
        assert program.wait() == 0
        assert program.err == ""
        text = "\n".join(program.out)
        assert "usage:" in text
        assert "--port" in text


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
    for program in EXAMPLES.rglob("*.py"):
        if "__main__" in program.read_text() and not re.fullmatch(r"finger0[2-6]\.py", program.name):
            path = str(program.relative_to(EXAMPLES))
            assert f"`{path}`" in tour or re.search(rf"`{program.parent.name}/.*`{program.name}`", tour), path


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


@pytest.mark.parametrize("path", SERVERS)
def test_a_server_outlives_peers_that_leave_in_every_way(path: str) -> None:
    with running(path, "--threads", "1") as server:
        for last_words in (b"", b"\0", bytes(100_000)):
            with server.connect() as peer:
                peer.sendall(last_words)
        with server.connect():
            pass
