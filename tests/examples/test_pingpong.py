"""The throughput benchmark: both of its programs, against each other and against plain sockets."""

from __future__ import annotations

import signal
import socket

import pytest

from conftest import PATIENCE_S, receive_exactly
from programs import Program, running


@pytest.mark.parametrize(("server_threads", "client_threads"), [("0", "0"), ("2", "2")])
def test_the_client_prints_what_the_sessions_have_bounced(server_threads: str, client_threads: str) -> None:
    with running("pingpong/server.py", "--threads", server_threads) as server:
        arguments = ["--port", str(server.port), "--sessions", "20", "--block-size", "1000", "--seconds", "2"]
        with Program("pingpong/client.py", *arguments, "--threads", client_threads) as client:
            assert client.wait() == 0, client.err
            assert client.err == ""
            sums, throughput, average = client.out
    words = sums.split()
    assert int(words[0]) >= 20 * 1000
    assert int(words[2]) >= 20
    assert float(throughput.split()[0]) > 0
    assert float(average.split()[0]) == pytest.approx(int(words[0]) / int(words[2]), abs=0.001)


def test_every_session_ends_even_if_there_was_no_time_to_play() -> None:
    with running("pingpong/server.py") as server:
        arguments = ["--port", str(server.port), "--sessions", "50", "--seconds", "0"]
        for threads in ("0", "1"):
            with Program("pingpong/client.py", *arguments, "--threads", threads) as client:
                assert client.wait() == 0, client.err


def test_ctrl_c_ends_the_client_early_with_its_result() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE_S)
        port = str(listening.getsockname()[1])
        with Program("pingpong/client.py", "--port", port, "--block-size", "1000", "--seconds", "600") as client:
            peer, _ = listening.accept()
            with peer:
                peer.settimeout(PATIENCE_S)
                peer.sendall(receive_exactly(peer, 1000))
                receive_exactly(peer, 1000)
                client.process.send_signal(signal.SIGINT)
                assert peer.recv(1) == b""
            assert client.wait() == 0
            assert client.out[0].startswith("1000 bytes, ")
            assert "Traceback" not in client.err


def test_a_server_that_leaves_ends_the_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE_S)
        port = str(listening.getsockname()[1])
        with Program("pingpong/client.py", "--port", port, "--sessions", "3", "--threads", "1") as client:
            for _ in range(3):
                listening.accept()[0].close()
            assert client.wait() == 0
            assert "Traceback" not in client.err


def test_no_server_is_one_line_and_code_1() -> None:
    with socket.socket() as bound:  # bound, but not listening: connecting is refused
        bound.bind(("127.0.0.1", 0))
        with Program("pingpong/client.py", "--port", str(bound.getsockname()[1])) as client:
            assert client.wait() == 1
            assert "can't connect to" in client.err
            assert "Traceback" not in client.err


def test_a_plain_peer_gets_its_bytes_back() -> None:
    with running("pingpong/server.py", "--threads", "1") as server, server.connect() as peer:
        peer.sendall(b"x" * 50_000)
        assert receive_exactly(peer, 50_000) == b"x" * 50_000
