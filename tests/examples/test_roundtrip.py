"""Round trips between two processes, with one clock."""

from __future__ import annotations

import re
import signal
import socket

from conftest import eventually
from programs import Program, running

LINE = re.compile(r"round trip (\d+) us, clock offset (-?\d+) us")


def test_both_ends_agree_on_the_time_of_one_machine() -> None:
    with running("roundtrip.py") as server:
        with Program("roundtrip.py", "--to", f"127.0.0.1:{server.port}", "--every", "0.01") as client:
            eventually(lambda: len(client.out) >= 5)
            found = [LINE.fullmatch(line) for line in client.out]
            assert client.end(signal.SIGINT) == 0
            assert client.err == ""
    for match in found:
        assert match is not None
        round_trip, offset = int(match[1]), int(match[2])
        # The offset is never wrong by more than half of the way that it was measured on.
        assert abs(offset) <= round_trip // 2 + 1


def test_a_datagram_that_is_none_of_ours_is_ignored() -> None:
    with running("roundtrip.py") as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"hello?", ("127.0.0.1", server.port))
        with Program("roundtrip.py", "--to", f"127.0.0.1:{server.port}", "--every", "0.01") as client:
            eventually(lambda: len(client.out) >= 1)
            assert client.end(signal.SIGTERM) == 0
