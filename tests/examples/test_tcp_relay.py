"""The TCP relay, in front of the echo example, and of a web server for the clients that people have."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from conftest import PATIENCE_S, installed, receive_all, receive_exactly
from programs import running
from web_files import FileServer, curl, fetch


@pytest.mark.parametrize("threads", ["0", "2"])
def test_every_byte_and_both_ends_go_through_the_relay(threads: str) -> None:
    with (
        running("echo.py") as target,
        running("tcp_relay.py", "--to", f"127.0.0.1:{target.port}", "--threads", threads) as relay,
    ):
        payload = os.urandom(5_000_000)
        with relay.connect() as one, relay.connect() as other:
            sender = threading.Thread(target=lambda: [one.sendall(payload), one.shutdown(socket.SHUT_WR)])
            sender.start()
            assert receive_all(one) == payload
            sender.join(PATIENCE_S)
            other.sendall(b"hello")
            assert receive_exactly(other, 5) == b"hello"
        relay.wait_for_log("has left: 5000000 bytes sent, 5000000 received")


@pytest.mark.parametrize("threads", ["0", "2"])
def test_curl_fetches_through_the_relay_one_file_or_many_at_a_time(threads: str, tmp_path: Path) -> None:
    payload = os.urandom(5_000_000)
    (tmp_path / "file").write_bytes(payload)
    with (
        FileServer(tmp_path).serving() as port,
        running("tcp_relay.py", "--to", f"127.0.0.1:{port}", "--threads", threads) as relay,
    ):
        url = f"http://127.0.0.1:{relay.port}/file"
        assert fetch(url) == hashlib.sha256(payload).hexdigest()
        result = curl("--fail", "--parallel", *(f"{url}?{number}" for number in range(10)))
        assert result.returncode == 0, result.stderr
        assert len(result.stdout) == 10 * len(payload)


@pytest.mark.parametrize("command", [("nc", "-N"), ("ncat",)])
def test_nc_and_ncat_get_back_what_they_send_through_the_relay(command: tuple[str, ...]) -> None:
    program, *options = command
    payload = os.urandom(5_000_000)
    with running("echo.py") as target, running("tcp_relay.py", "--to", f"127.0.0.1:{target.port}") as relay:
        done = subprocess.run(
            [installed(program), *options, "127.0.0.1", str(relay.port)],
            input=payload,
            stdout=subprocess.PIPE,
            timeout=PATIENCE_S,
            check=True,
        )
        assert hashlib.sha256(done.stdout).hexdigest() == hashlib.sha256(payload).hexdigest()
        relay.wait_for_log("has left: 5000000 bytes sent, 5000000 received")


def test_who_comes_in_vain_is_sent_away() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with running("tcp_relay.py", "--to", f"127.0.0.1:{port}") as relay:
        with relay.connect() as peer:
            assert peer.recv(1) == b""
        relay.wait_for_log("can't be connected to")
