"""The chat's page: its gateway, asked by real HTTP clients and by people who mean harm."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from types import TracebackType

import pytest

from conftest import PATIENCE_S, eventually, imported, installed, receive_all
from programs import Program, running

imported("httptools")  # the gateway reads HTTP with it


class Browser:
    """Listens to the events as a browser does, and speaks on connections of its own."""

    def __init__(self, gateway: Program, name: str = "") -> None:
        self._gateway = gateway
        self.http = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE_S)
        self.http.request("GET", f"/events?name={name}")
        self.events = self.http.getresponse()
        self.seat = ""
        if self.events.status == 200:
            assert self.events.getheader("Content-Type") == "text/event-stream"
            kind, self.seat = self.hear_event()
            assert kind == "seat"

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.events.close()
        self.http.close()

    def hear_event(self) -> tuple[str, str]:
        """Return the kind and the text of the next event."""
        kind = text = ""
        while line := self.events.readline().decode().removesuffix("\n"):
            key, _, value = line.partition(": ")
            if key == "event":
                kind = value
            elif key == "data":
                text = json.loads(value)
        return kind, text

    def hear(self) -> str:
        """Return what is said next."""
        kind, text = self.hear_event()
        assert kind == ""
        return text

    def say(self, text: str, **fields: str) -> int:
        """Say something and return the status."""
        return ask(self._gateway, "POST", "/say", text.encode(), **{"X-Seat": self.seat, **fields})[0]


def ask(
    gateway: Program, method: str, path: str, body: bytes | None = None, **fields: str
) -> tuple[int, bytes, http.client.HTTPMessage]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE_S)) as client:
        client.request(method, path, body, fields)
        answer = client.getresponse()
        return answer.status, answer.read(), answer.headers


def send_raw(gateway: Program, data: bytes) -> bytes:
    """Return all that is answered to these bytes."""
    with gateway.connect() as sock:
        with contextlib.suppress(OSError):  # it may have heard enough
            sock.sendall(data)
        with contextlib.suppress(ConnectionResetError):
            return receive_all(sock)
    return b""


@contextlib.contextmanager
def chat_and_gateway(threads: str = "2") -> Iterator[tuple[Program, Program]]:
    with (
        running("chat/server.py") as chat,
        running("chat/web_gateway.py", "--chat-port", str(chat.port), "--threads", threads) as gateway,
    ):
        yield chat, gateway


@pytest.mark.parametrize("threads", ["0", "2"])
def test_browsers_and_terminals_talk_to_each_other(threads: str) -> None:
    with (
        chat_and_gateway(threads) as (chat, gateway),
        Browser(gateway, "ann") as ann,
        Program("chat/client.py", "--port", str(chat.port), "--name", "bob") as bob,
    ):
        assert ann.hear() == "* ann joined"
        bob.wait_for_line("* bob joined")
        assert ann.hear() == "* bob joined"
        assert ann.say("from a browser: ümläut 猫 <b>&amp;</b>\nand a second line\r\n\ndata: forged") == 204
        assert ann.hear() == "ann: from a browser: ümläut 猫 <b>&amp;</b>\nand a second line\r\n\ndata: forged"
        bob.type("from a terminal")
        assert ann.hear() == "bob: from a terminal"
        with Browser(gateway) as third:
            assert third.say("no name") == 204
            for browser in (ann, third):
                assert [browser.hear(), browser.hear()] == ["* guest-1 joined", "guest-1: no name"]
        assert ann.hear() == "* guest-1 left"
        assert ann.say("  \n ") == 204  # nothing
        assert ann.say("/quit") == 204
        assert ann.hear_event() == ("end", "the chat has ended")
        assert ann.events.read() == b""
        bob.wait_for_line("* ann left")
        assert ann.say("still?") == 403


def test_what_is_said_by_many_browsers_reaches_all_in_one_order() -> None:
    with chat_and_gateway() as (_, gateway), contextlib.ExitStack() as stack:
        browsers = [stack.enter_context(Browser(gateway, f"b{number}")) for number in range(6)]
        for number, browser in enumerate(browsers):  # who hears itself is in
            browser.say("here")
            while browser.hear() != f"b{number}: here":
                pass
        browsers[0].say("begin")
        for browser in browsers:
            while browser.hear() != "b0: begin":
                pass
        for number in range(20):
            for browser in browsers:
                assert browser.say(str(number)) == 204
        heard = [[browser.hear() for _ in range(120)] for browser in browsers]
        assert all(lines == heard[0] for lines in heard)
        for number in range(6):
            assert [line for line in heard[0] if line.startswith(f"b{number}: ")] == [
                f"b{number}: {i}" for i in range(20)
            ]


def test_a_browser_that_goes_away_leaves_the_chat() -> None:
    with chat_and_gateway() as (_, gateway), Browser(gateway, "ann") as ann:
        assert ann.hear() == "* ann joined"
        with Browser(gateway, "bob"):
            assert ann.hear() == "* bob joined"
        assert ann.hear() == "* bob left"


def test_the_page_and_all_that_it_names_are_there() -> None:
    with chat_and_gateway() as (_, gateway):
        status, page, fields = ask(gateway, "GET", "/")
        assert status == 200
        assert fields["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'self'" in fields["Content-Security-Policy"]
        names = re.findall(r'(?:src|href)="([^":]+)"', page.decode())
        assert sorted(names) == ["chat.css", "chat.js"]
        for name in names:
            status, content, fields = ask(gateway, "GET", f"/{name}")
            assert (status, fields["X-Content-Type-Options"]) == (200, "nosniff")
            head_status, nothing, head = ask(gateway, "HEAD", f"/{name}")
            assert (head_status, nothing, head["Content-Length"]) == (200, b"", str(len(content)))


def test_requests_on_one_connection_are_answered_in_order() -> None:
    with chat_and_gateway() as (_, gateway):
        host = f"Host: 127.0.0.1:{gateway.port}\r\n".encode()
        requests = b"".join(
            [
                b"GET /chat.css HTTP/1.1\r\n" + host + b"\r\n",
                b"HEAD / HTTP/1.1\r\n" + host + b"\r\n",
                b"POST /say HTTP/1.1\r\n" + host + b"X-Seat: x\r\nContent-Length: 2\r\n\r\nhi",
                b"GET / HTTP/1.1\r\n" + host + b"\r\n",  # not answered: the refusal before it ended the conversation
            ]
        )
        answer = send_raw(gateway, requests)
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"200", b"403"]
        with gateway.connect() as sock:  # the same, byte by byte
            for number in range(len(requests)):
                with contextlib.suppress(OSError):
                    sock.sendall(requests[number : number + 1])
            with contextlib.suppress(ConnectionResetError):
                assert receive_all(sock) == answer


@pytest.mark.parametrize(
    ("status", "method", "path", "fields"),
    [
        (404, "GET", "/../server.py", {}),
        (404, "GET", "/chat.css/", {}),
        (421, "GET", "http://127.0.0.1/", {}),
        (405, "POST", "/", {}),
        (405, "PUT", "/say", {}),
        (405, "POST", "/events", {}),
        (421, "GET", "/", {"Host": "rebound.example"}),
        (421, "GET", "/", {"Host": ""}),
        (403, "GET", "/events", {"Origin": "http://elsewhere.example"}),
        (403, "POST", "/say", {"Origin": "null"}),
        (403, "POST", "/say", {}),
        (403, "POST", "/say", {"X-Seat": "guessed"}),
        (400, "GET", "/events?name=guest-1", {}),
        (400, "GET", "/events?name=two%20words", {}),
        (413, "POST", "/say", {"X-Seat": "x" * 100, "Content-Length": str(1 << 40)}),
    ],
)
def test_what_is_not_allowed_is_refused(status: int, method: str, path: str, fields: dict[str, str]) -> None:
    body = b"x" * (17 << 10) if status == 413 else None
    with chat_and_gateway() as (_, gateway):
        answered, reason, told = ask(gateway, method, path, body, **fields)
        assert answered == status
        assert reason
        assert told["Connection"] == "close"


@pytest.mark.parametrize(
    ("status", "data"),
    [
        (400, b"hello\r\n\r\n"),
        (400, b"\x16\x03\x01\x02\x00\x01\x00"),
        (400, b"POST /say HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (501, b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\nX: " + b"x" * 300_000),
        (431, b"GET /" + b"x" * 300_000),
        (413, b"POST /say HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5000\r\n" + b"x" * 0x5000),
        (421, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: localhost\r\n\r\n"),
    ],
)
def test_what_is_no_request_or_too_large_ends_the_connection(status: int, data: bytes) -> None:
    with chat_and_gateway() as (_, gateway):
        answer = send_raw(gateway, data)
        assert not answer or answer.startswith(b"HTTP/1.1 %d " % status)
        assert ask(gateway, "GET", "/")[0] == 200


def test_no_chat_is_a_bad_gateway() -> None:
    with socket.socket() as bound:  # bound, but not listening: connecting is refused
        bound.bind(("127.0.0.1", 0))
        with running("chat/web_gateway.py", "--chat-port", str(bound.getsockname()[1])) as gateway:
            assert ask(gateway, "GET", "/events?name=ann")[0] == 502
            gateway.wait_for_log("no way to the chat")


def test_browsers_are_told_when_the_chat_ends() -> None:
    with Program("chat/server.py", "--port", "0") as chat:
        with (
            running("chat/web_gateway.py", "--chat-port", str(chat.port)) as gateway,
            Browser(gateway, "ann") as ann,
        ):
            assert ann.hear() == "* ann joined"
            assert chat.end() == 0
            events = [ann.hear_event()]
            while events[-1][0] != "end":
                events.append(ann.hear_event())
            assert events[-1] == ("end", "the chat has ended")


def test_a_browser_that_does_not_read_is_cut_off() -> None:
    with chat_and_gateway() as (_, gateway), Browser(gateway, "ann") as ann:
        assert ann.hear() == "* ann joined"
        with gateway.connect() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.sendall(b"GET /events?name=slow HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % gateway.port)
            assert ann.hear() == "* slow joined"
            heard = ""
            for _ in range(1000):
                ann.say("x" * 16_000)
                if (heard := ann.hear()) == "* slow left":
                    break
            assert heard == "* slow left"
        gateway.wait_for_log("max_output_bytes is 1048576; .* is cut off")


def test_curl_listens_and_speaks() -> None:
    curl = installed("curl")
    with chat_and_gateway() as (_, gateway):
        url = f"http://localhost:{gateway.port}"
        listener = subprocess.Popen(
            [curl, "--silent", "--no-buffer", "--ipv4", f"{url}/events?name=curl"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "event: seat\n"
            seat = json.loads(listener.stdout.readline().removeprefix("data: "))
            said = [curl, "--silent", "--ipv4", "--write-out", "%{http_code}", "--header", f"X-Seat: {seat}"]
            result = subprocess.run(
                [*said, "--data-binary", "hello", f"{url}/say"], stdout=subprocess.PIPE, timeout=PATIENCE_S, check=True
            )
            assert result.stdout == b"204"
            heard = [listener.stdout.readline() for _ in range(5)]
            assert heard[1:] == ['data: "* curl joined"\n', "\n", 'data: "curl: hello"\n', "\n"]
        finally:
            listener.terminate()
            listener.communicate(timeout=PATIENCE_S)
        eventually(lambda: ask(gateway, "POST", "/say", b"x", **{"X-Seat": seat})[0] == 403)
