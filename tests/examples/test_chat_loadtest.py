"""The chat's load test: it passes with every chat server, and finds what a bad one does."""

from __future__ import annotations

import itertools
import re
import signal
import socket
import threading
from collections.abc import Callable

import pytest

from programs import Program, running
from pymuduo import TcpConnection, Timestamp
from pymuduo.codec import LengthHeaderCodec

SERVERS = ("server", "server_threaded", "server_threaded_efficient", "server_threaded_highperformance")


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("threads", ["0", "2"])
def test_every_server_delivers_everything_once_and_in_order(server: str, threads: str) -> None:
    with (
        running(f"chat/{server}.py", "--threads", threads) as chat,
        load(chat.port, "--clients", "40", "--messages", "20", "--threads", threads) as test,
    ):
        assert test.wait() == 0, test.err
        assert test.err == ""
        came, counted, latency, cpu = test.out
        assert re.fullmatch(r"40 clients are in after [\d.]+ s", came)
        assert counted.startswith("32000 deliveries in "), "each of 40 says 20 messages to 40"
        assert counted.endswith(" none lost or doubled, each speaker's in order")
        assert re.fullmatch(r"latency in ms: p50 [\d.]+, p99 [\d.]+, max [\d.]+", latency)
        assert re.fullmatch(r"the clients used \d+% of a core", cpu)


def test_one_speaker_and_long_messages() -> None:
    with (
        running("chat/server.py") as chat,
        load(chat.port, "--clients", "5", "--speakers", "1", "--messages", "30", "--bytes", "60000") as test,
    ):
        assert test.wait() == 0, test.err
        assert test.out[1].startswith("150 deliveries in ")


class BadChat:
    """A chat whose n-th message to one member is tampered with: it gets what *tamper* makes of that and the next."""

    def __init__(self, tamper: Callable[[bytes, bytes], list[bytes]], nth: int = 40) -> None:
        self._members: set[TcpConnection] = set()
        self._victim: TcpConnection | None = None
        self._numbers = itertools.count(1)
        self._tamper = tamper
        self._nth = nth
        self._kept = b""
        self._codec = LengthHeaderCodec(self._on_message, header_bytes=4, max_bytes=65_536)
        self.settings = {"connection_callback": self._on_connection, "message_callback": self._codec.on_message}

    def _on_connection(self, connection: TcpConnection) -> None:
        if connection.connected:
            self._victim = connection
            self._members.add(connection)
        else:
            self._members.discard(connection)

    def _on_message(self, connection: TcpConnection, message: bytes, receive_time: Timestamp) -> None:
        number = next(self._numbers)
        for member in list(self._members):
            if member is not self._victim or number not in (self._nth, self._nth + 1):
                self._codec.send(member, message)
            elif number == self._nth:
                self._kept = message
            else:
                for told in self._tamper(self._kept, message):
                    self._codec.send(member, told)


@pytest.mark.parametrize(
    ("tamper", "complaint", "patience"),
    [
        (lambda one, two: [two], "number [0-9]+ of [0-9]+, when [0-9]+ was due|nothing more comes", "1"),
        (lambda one, two: [one, one, two], "number [0-9]+ of [0-9]+, when [0-9]+ was due", "20"),
        (lambda one, two: [one[:-9] + b"/////////", two], "which nobody has said|when [0-9]+ was due", "20"),
    ],
    ids=["lost", "doubled", "spoilt"],
)
def test_a_server_that_loses_doubles_or_spoils_is_found_out(serve, tamper, complaint, patience) -> None:
    server = serve(0, **BadChat(tamper).settings)
    with load(server.port, "--clients", "5", "--messages", "30", "--bytes", "0", "--patience", patience) as test:
        assert test.wait() == 1
        assert re.search(complaint, test.err), test.err
        assert "none lost" not in "".join(test.out)


def test_messages_of_one_speaker_that_change_places_are_found(serve) -> None:
    server = serve(0, **BadChat(lambda one, two: [two, one], nth=5).settings)
    with load(server.port, "--clients", "2", "--speakers", "1", "--messages", "1", "--patience", "20") as test:
        assert test.wait() == 0, "numbers 1 and 2 are greetings, 3 is the message, 4 the last word"
    server = serve(0, **BadChat(lambda one, two: [two, one], nth=3).settings)
    with load(server.port, "--clients", "2", "--speakers", "1", "--messages", "1", "--patience", "1") as test:
        assert test.wait() == 1
        assert re.search("number 2 of 0, when 1 was due|nothing more comes", test.err), test.err


def test_a_server_that_hangs_up_or_is_not_there_is_reported(serve) -> None:
    server = serve(0, connection_callback=lambda connection: connection.force_close())
    with load(server.port) as test:
        assert test.wait() == 1
        assert re.search("client [0-9]+ was disconnected", test.err)
    with socket.socket() as bound:  # bound, but not listening: connecting is refused
        bound.bind(("127.0.0.1", 0))
        with load(bound.getsockname()[1]) as test:
            assert test.wait() == 1
            assert "can't connect: " in test.err
            assert "Traceback" not in test.err


def test_ctrl_c_breaks_it_off(serve) -> None:
    heard = threading.Event()
    server = serve(0, message_callback=lambda connection, buffer, receive_time: heard.set())
    with load(server.port) as test:
        assert heard.wait(20)
        assert test.end(signal.SIGINT) == 0
        assert test.out[-1] == "broken off after 0 deliveries, in order so far"


def test_impossible_orders_are_refused() -> None:
    for arguments in (
        ("--clients", "0"),
        ("--messages", "0"),
        ("--bytes", "60001"),
        ("--patience", "0"),
        ("--clients", "10000", "--messages", "10000"),
    ):
        with load(1, *arguments) as test:
            assert test.wait() == 2
            assert "usage: " in test.err


def load(port: int, *arguments: str) -> Program:
    """Start the load test of a server."""
    return Program("chat/loadtest.py", "--port", str(port), *arguments)
