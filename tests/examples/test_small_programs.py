"""Programs of one idea each: a limit of connections, clients that ask, watch, measure."""

from __future__ import annotations

import datetime
import re
import socket
import struct
import subprocess
import sys
import time

import pytest

from conftest import PATIENCE_S, installed, lacking, receive_all, receive_exactly
from programs import EXAMPLES, Program, running

# --- max_connections ---


@pytest.mark.parametrize("threads", ["0", "2"])
def test_who_comes_when_it_is_full_is_told_and_places_become_free_again(threads: str) -> None:
    with running("max_connections.py", "--most", "2", "--threads", threads) as server:
        guests = [server.connect(), server.connect()]
        for guest in guests:
            guest.sendall(b"hello")
            assert receive_exactly(guest, 5) == b"hello"
        with server.connect() as late:
            assert receive_all(late) == b"full, come back later\r\n"
        for guest in guests:
            guest.close()
        deadline = time.monotonic() + PATIENCE_S
        while True:  # until the server has seen them go
            with server.connect() as next_one:
                next_one.sendall(b"hello")
                if receive_exactly(next_one, 5) == b"hello":
                    break
            assert time.monotonic() < deadline


# --- time_client ---


def test_the_time_client_prints_what_the_time_server_says() -> None:
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    with running("time_server.py") as server, Program("time_client.py", "--port", str(server.port)) as client:
        assert client.wait() == 0, client.err
    told = datetime.datetime.fromisoformat(client.out[0])
    assert before <= told <= datetime.datetime.now(datetime.UTC)


@pytest.mark.parametrize("answer", [b"", b"\0\0\0"])
def test_the_time_client_fails_if_the_server_does_not_tell(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with Program("time_client.py", "--port", str(listener.getsockname()[1])) as client:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(answer)
            assert client.wait() == 1
    assert "did not tell the time" in client.err


def test_the_time_client_does_not_wait_for_ever() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        with Program("time_client.py", "--port", port, "--timeout", "0.2") as client:
            assert client.wait() == 1


def test_the_time_client_reads_the_era_that_begins_in_2036() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with Program("time_client.py", "--port", str(listener.getsockname()[1])) as client:
            peer, _ = listener.accept()
            with peer:
                for number in range(4):
                    peer.sendall(b"\0\0\0\1"[number : number + 1])
                assert client.wait() == 0, client.err
    assert client.out == ["2036-02-07 06:28:17+00:00"]


# --- uptime ---


def test_uptime_tells_when_a_server_goes_and_comes_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with Program("uptime.py", "--port", str(address[1])) as watch:
            listener.accept()[0].close()
            watch.wait_for_log(r"is down, after \d+\.\d+ s: it has closed the connection")
            with listener.accept()[0] as peer:  # it comes again by itself
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.sendall(b"I am well")
                watch.wait_for_log("is up, after", nth=2)
            watch.wait_for_log(r"is down, after .*reset")
            assert watch.end() == 0
            assert "Traceback" not in watch.err


def test_uptime_counts_silence_as_an_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with Program("uptime.py", "--port", str(listener.getsockname()[1]), "--silence", "0.2") as watch:
            with listener.accept()[0]:
                watch.wait_for_log(r"is down, after .*: .*nothing received")
            assert watch.end() == 0


def test_uptime_goes_on_while_nobody_is_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with Program("uptime.py", "--port", str(taken.getsockname()[1])) as watch:
            watch.wait_for_log("still down: .*refused")
            taken.listen()
            watch.wait_for_log("is up, after")
            assert watch.end() == 0


# --- ttcp ---


@pytest.mark.parametrize("threads", ["0", "1"])
def test_ttcp_sends_all_blocks_and_both_ends_tell_how_many(threads: str) -> None:
    with running("ttcp.py", "--receive", "--threads", threads) as receiver:
        blocks = ("--length", "10000", "--number", "300")
        with Program("ttcp.py", "--transmit", "127.0.0.1", "--port", str(receiver.port), *blocks) as transmitter:
            assert transmitter.wait() == 0, transmitter.err
        assert re.fullmatch(r"2\.861 MiB in \d+\.\d+ s, \d+\.\d+ MiB/s", transmitter.out[0])
        receiver.wait_for_printed(r"2\.861 MiB in ")


def test_a_ttcp_of_another_make_is_understood() -> None:
    with running("ttcp.py", "--receive") as receiver:
        with receiver.connect() as other:
            other.sendall(struct.pack(">ii", 3, 5))
            for _ in range(3):
                other.sendall(struct.pack(">i", 5) + b"abcde")
                assert receive_exactly(other, 4) == struct.pack(">i", 5)
        receiver.wait_for_printed(r"0\.000 MiB in ")


@pytest.mark.parametrize(
    "rubbish",
    [
        struct.pack(">ii", 0, 5),
        struct.pack(">ii", 1, 0),
        struct.pack(">ii", 1, 1 << 30),
        struct.pack(">ii", 2, 5) + struct.pack(">i", 6) + b"abcdef",
        struct.pack(">ii", 1, 1) + 2 * (struct.pack(">i", 1) + b"a"),
    ],
)
def test_ttcp_cuts_off_what_speaks_something_else(rubbish: bytes) -> None:
    with running("ttcp.py", "--receive") as receiver, receiver.connect() as other:
        other.sendall(rubbish)
        while other.recv(100):
            pass
        receiver.wait_for_log("cut off")


def test_a_ttcp_that_finds_nobody_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with Program("ttcp.py", "--transmit", "127.0.0.1", "--port", str(taken.getsockname()[1])) as transmitter:
            assert transmitter.wait() == 1
    assert "ttcp: " in transmitter.err


# --- pingpong/bench ---


def test_the_event_bench_counts_events() -> None:
    with Program("pingpong/bench.py", "--pairs", "20", "--active", "5", "--writes", "200", "--rounds", "2") as bench:
        assert bench.wait() == 0, bench.err
    assert re.fullmatch(r"20 pairs, 5 active: \d+\.\d\d us an event", bench.out[0])


# --- finger ---


@pytest.mark.parametrize(
    ("step", "question", "answer"),
    [
        (3, b"", b""),
        (4, b"ann\r\n", b""),
        (5, b"ann\r\n", b"No such user\r\n"),
        (6, b"ann\r\n", b"No such user\r\n"),
        (7, b"ann\r\n", b"Ann is at lunch\r\n"),
        (7, b"/W ann\r\n", b"Ann is at lunch\r\n"),
        (7, b"bob\r\n", b"No such user\r\n"),
        (7, b"\r\n", b"No such user\r\n"),
    ],
)
def test_each_step_of_finger_does_what_it_says(step: int, question: bytes, answer: bytes) -> None:
    users = ("--user", "ann:Ann is at lunch") if step == 7 else ()
    with running(f"finger/finger0{step}.py", *users) as server, server.connect() as client:
        client.sendall(question[:2])
        client.sendall(question[2:])
        assert receive_all(client) == answer


def test_the_second_step_of_finger_keeps_who_comes() -> None:
    with running("finger/finger02.py") as server, server.connect() as client:
        client.sendall(b"ann\r\n")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)


def test_who_never_ends_a_line_is_cut_off() -> None:
    with running("finger/finger07.py") as server, server.connect() as client:
        client.sendall(b"x" * 600)
        assert receive_all(client) == b""
        server.wait_for_log("a line of more than 512 bytes")


def test_the_first_step_of_finger_waits_for_a_signal() -> None:
    with Program("finger/finger01.py") as program:
        assert program.process.poll() is None
        program.wait_for_handlers()
        assert program.end() == 0


# The client knows no port but 79, so the two meet in a network namespace of their own.
MEETING = """
ip link set lo up || exit
exec 3< <(exec "$@" 2>&1)
read -r listens <&3
finger ann@127.0.0.1
kill $!
cat <&3
"""


def own_network() -> list[str]:
    """Return a command that runs another one in a network namespace of its own; without it the test ends here."""
    unshare = installed("unshare")
    for options in ("-n", "-rn"):  # as root, or as who becomes root in a namespace of users
        if subprocess.run([unshare, options, "true"], capture_output=True, check=False).returncode == 0:
            return [unshare, options]
    return lacking("no network namespaces for this user")


def test_the_real_finger_client_is_answered() -> None:
    for program in ("finger", "ip"):
        installed(program)
    server = [sys.executable, str(EXAMPLES / "finger/finger07.py"), "--port", "79", "--user", "ann:Ann is at lunch"]
    done = subprocess.run(
        [*own_network(), "bash", "-c", MEETING, "bash", *server],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert "Ann is at lunch" in done.stdout, done.stderr
    assert " asks b'ann'" in done.stdout
    assert "Traceback" not in done.stdout
