"""A page in the browser for the chat: HTTP on one side, the chat's own protocol on the other.

What it teaches: a foreign protocol on each side of one program. HTTP is read by a library made for it
(``httptools``); what it does not bound, the size of a head and of a body, is bounded here. A browser that listens has
one response that never ends (server-sent events), and a connection to the chat of its own, in the same loop; so each
message goes from one to the other without leaving the thread. What the browser says comes in other requests, on
connections that may live in other loops: they find the way by a token, and ``send`` may be called from any thread.

Any page that this browser shows, from wherever, can send requests to this machine. So a request must name a host that
is ours (a foreign name that leads here is refused), come from a page of ours if it says whence it comes, and what is to
be said must bring the token, which only a page of ours was told. The page itself puts in only text, never markup.

It listens on the loopback interface unless told otherwise. Then the names it is known by have to be given, too.

    python server.py        and elsewhere        python web_gateway.py        then open http://127.0.0.1:8399/

With a name behind it, ``http://127.0.0.1:8399/#ann``, nobody is asked.
"""

from __future__ import annotations

import argparse
import json
import logging
import secrets
import urllib.parse
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

import httptools

from chat_service import NAME
from codec import HEADER_BYTES, MAX_MESSAGE_BYTES
from pymuduo import (
    Buffer,
    ConnectionLimits,
    EventLoop,
    IdleTimeouts,
    InetAddress,
    TcpClient,
    TcpConnection,
    TcpServer,
    Timer,
    Timestamp,
)
from pymuduo.codec import LengthHeaderCodec

_MAX_HEAD_BYTES = 16 << 10
_MAX_SAID_BYTES = 16 << 10
_MAX_UNREAD_BYTES = 1 << 20
_PATIENCE_S = 10.0
_IDLE_S = 60.0
_HEARTBEAT_S = 20.0
_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript"}
_SAFE = "Content-Security-Policy: default-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'\r\n"
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"


class HttpError(Exception):
    """A request is refused with a status, and fields that belong to it."""

    def __init__(self, status: HTTPStatus, reason: str, fields: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.fields = fields


class Request(NamedTuple):
    """What a browser asks; names of fields are in lower case, and one that was given twice is joined by commas."""

    method: str
    path: str
    query: dict[str, list[str]]
    fields: dict[str, str]
    body: bytes
    keeps_alive: bool


class RequestReader:
    """Makes requests of bytes, and bounds what ``httptools`` does not. Its ``on_…`` methods are called by that."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._requests: list[Request] = []
        self.on_message_begin()

    def feed(self, data: bytes) -> list[Request]:
        """Return the requests that these bytes complete.

        Raises:
            HttpError: they are none, or too large.
        """
        self._has_begun = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise HttpError(HTTPStatus.NOT_IMPLEMENTED, "no other protocol is spoken here") from None
        except httptools.HttpParserError:
            raise HttpError(HTTPStatus.BAD_REQUEST, "no request of HTTP/1") from None
        if self._is_in_head and not self._has_begun:  # how much of the read in which it begins is its own, is not told
            self._head_bytes += len(data)
        if self._head_bytes > _MAX_HEAD_BYTES:
            raise HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "so much is not needed")
        if self._body_bytes > _MAX_SAID_BYTES:
            raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {_MAX_SAID_BYTES} bytes are said at once")
        requests, self._requests = self._requests, []
        return requests

    def on_message_begin(self) -> None:
        """Forget the request before."""
        self._has_begun = True
        self._is_in_head = True
        self._head_bytes = self._body_bytes = 0
        self._target = b""
        self._fields: dict[str, str] = {}
        self._body: list[bytes] = []

    def on_url(self, part: bytes) -> None:
        """Note a part of the target."""
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a field."""
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self._fields[key] = f"{self._fields[key]}, {text}" if key in self._fields else text

    def on_headers_complete(self) -> None:
        """Count what follows as body."""
        self._is_in_head = False

    def on_body(self, part: bytes) -> None:
        """Note a part of the body, unless it is too large already."""
        self._body_bytes += len(part)
        if self._body_bytes <= _MAX_SAID_BYTES:
            self._body.append(part)

    def on_message_complete(self) -> None:
        """Note the request."""
        path, _, query = self._target.decode("latin-1").partition("?")
        self._requests.append(
            Request(
                self._parser.get_method().decode(),
                path,
                urllib.parse.parse_qs(query),
                self._fields,
                b"".join(self._body),
                self._parser.should_keep_alive(),
            )
        )


class Seat:
    """A browser that listens, and its connection to the chat. Both live in one loop, and this in its thread."""

    def __init__(self, gateway: Gateway, browser: TcpConnection, name: str) -> None:
        self.token = secrets.token_urlsafe(16)
        self.chat: TcpConnection | None = None
        self._gateway = gateway
        self._browser = browser
        self._name = name
        self._heartbeat: Timer | None = None
        codec = LengthHeaderCodec(
            batch_callback=self._on_messages, header_bytes=HEADER_BYTES, max_bytes=MAX_MESSAGE_BYTES
        )
        self._client = TcpClient(browser.loop, gateway.chat, f"{browser.name}-chat", connect_timeout_s=_PATIENCE_S)
        self._client.connection_callback = self._on_chat
        self._client.message_callback = codec.on_message
        self._client.connect_failed_callback = self._on_failed
        self._client.connect()

    def leave(self) -> None:
        """Give the seat up: the browser is gone. Harmless twice."""
        self._gateway.seats.pop(self.token, None)
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            self._heartbeat = None
        self._client.disconnect()

    def _on_chat(self, chat: TcpConnection) -> None:
        if chat.connected and self._browser.connected:
            self.chat = chat
            self._gateway.seats[self.token] = self
            self._heartbeat = self._browser.loop.run_every(_HEARTBEAT_S, self._browser.send, b":\n\n")
            self._browser.send(_STREAM + b"event: seat\n" + event(self.token))
            if self._name:
                chat.send(self._gateway.codec.encode(f"/name {self._name}".encode()))
        elif not chat.connected:
            self.leave()
            if self._browser.connected:
                self._browser.send(b"event: end\n" + event("the chat has ended"))
                self._gateway.hang_up(self._browser)

    def _on_messages(self, chat: TcpConnection, messages: list[bytes], receive_time: Timestamp) -> None:
        self._browser.send(b"".join([event(message.decode("utf-8", "replace")) for message in messages]))

    def _on_failed(self, client: TcpClient, error: Exception) -> None:
        logging.warning("no way to the chat: %s", error)
        self._gateway.refuse(self._browser, HttpError(HTTPStatus.BAD_GATEWAY, "the chat is not there"))


class Visit:
    """What we know of a connection from a browser; its context, and confined to its loop."""

    def __init__(self) -> None:
        self.reader = RequestReader()
        self.seat: Seat | None = None
        self.is_over = False  # nothing that still comes is read


class Gateway:
    """Answers the browsers.

    Attributes:
        chat: where it is. codec: for what is said there. These never change once the server has started.
        seats: by their tokens, of all loops. Each operation on a dict is atomic, and none here takes two.
    """

    def __init__(self, server: TcpServer, chat: tuple[str, int], hosts: Sequence[str]) -> None:
        self.chat = chat
        self.codec = LengthHeaderCodec(header_bytes=HEADER_BYTES, max_bytes=MAX_MESSAGE_BYTES)
        self.seats: dict[str, Seat] = {}
        self._hosts = frozenset(hosts)
        self._files = {
            f"/{file.name}": (file.read_bytes(), _TYPES[file.suffix])
            for file in (Path(__file__).parent / "web").iterdir()
            if file.suffix in _TYPES
        }
        self._files["/"] = self._files["/index.html"]
        server.connection_callback = self._on_connection
        server.message_callback = self._on_message
        server.max_output_bytes = _MAX_UNREAD_BYTES

    def refuse(self, connection: TcpConnection, error: HttpError) -> None:
        """Send an error and end the connection; in its loop."""
        logging.info("%s is refused: %d, %s", connection.peer_address, error.status.value, error)
        connection.send(response(error.status, f"{error}\n".encode(), "text/plain", error.fields, keeps_alive=False))
        self.hang_up(connection)

    def hang_up(self, connection: TcpConnection) -> None:
        """End a connection in good order; in its loop."""
        connection.context.is_over = True
        connection.shutdown(within_s=_PATIENCE_S)

    def _on_connection(self, connection: TcpConnection) -> None:
        if connection.connected:
            connection.context = Visit()
        elif (seat := connection.context.seat) is not None:
            seat.leave()

    def _on_message(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        data = buffer.retrieve_all_as_bytes()
        visit = connection.context
        if visit.is_over or visit.seat is not None:  # an endless response: whatever comes, there will be no other
            return
        try:
            for request in visit.reader.feed(data):
                self._answer(connection, request)
                if visit.is_over or visit.seat is not None:
                    break
        except HttpError as e:
            self.refuse(connection, e)

    def _answer(self, connection: TcpConnection, request: Request) -> None:
        self._check_origin(request)
        match request.method, request.path:
            case "GET", "/events":
                name = request.query.get("name", [""])[0]
                if name and not NAME.fullmatch(name):
                    raise HttpError(HTTPStatus.BAD_REQUEST, "that is no name")
                connection.context.seat = Seat(self, connection, name)
                return
            case "POST", "/say":
                self._say(request)
                answer = response(HTTPStatus.NO_CONTENT, keeps_alive=request.keeps_alive)
            case "GET" | "HEAD", path if path in self._files:
                content, kind = self._files[path]
                answer = response(HTTPStatus.OK, content, kind, _SAFE, keeps_alive=request.keeps_alive)
                if request.method == "HEAD":
                    answer = answer[: -len(content)]
            case _, ("/events" | "/say") as path:
                allowed = "GET" if path == "/events" else "POST"
                raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, f"only {allowed}", f"Allow: {allowed}\r\n")
            case _, path if path in self._files:
                raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, "only GET", "Allow: GET, HEAD\r\n")
            case _:
                raise HttpError(HTTPStatus.NOT_FOUND, "there is nothing")
        connection.send(answer)
        if not request.keeps_alive:
            self.hang_up(connection)

    def _check_origin(self, request: Request) -> None:
        host = request.fields.get("host", "").lower()
        if host not in self._hosts:
            raise HttpError(HTTPStatus.MISDIRECTED_REQUEST, "that host is not here")
        if request.fields.get("origin", f"http://{host}") != f"http://{host}":
            raise HttpError(HTTPStatus.FORBIDDEN, "that page may not")

    def _say(self, request: Request) -> None:
        seat = self.seats.get(request.fields.get("x-seat", ""))
        if seat is None or seat.chat is None:
            raise HttpError(HTTPStatus.FORBIDDEN, "take a seat first")
        if request.body.strip():
            seat.chat.send(self.codec.encode(request.body))


def event(text: str) -> bytes:
    """Return what puts a text into an event stream: as JSON, which has no line ends."""
    return f"data: {json.dumps(text)}\n\n".encode()


def response(
    status: HTTPStatus, body: bytes = b"", kind: str = "", fields: str = "", *, keeps_alive: bool = True
) -> bytes:
    """Return a whole response."""
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", "X-Content-Type-Options: nosniff", "Cache-Control: no-cache"]
    if status is not HTTPStatus.NO_CONTENT:
        lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    if not keeps_alive:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + f"\r\n{fields}\r\n").encode() + body


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="a page in the browser for the chat")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; default %(default)s")
    parser.add_argument("--port", type=int, default=8399, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--chat-host", default="127.0.0.1", help="default %(default)s")
    parser.add_argument("--chat-port", type=int, default=3399, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    parser.add_argument("--name", action="append", default=[], help="a host name that browsers may call us by, as well")
    options = parser.parse_args()
    if not 0 < options.chat_port <= 65535:
        parser.error(f"--chat-port must be 1 to 65535, got {options.chat_port}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            server = TcpServer(loop, InetAddress(options.host, options.port), "web")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.limits = ConnectionLimits(max_connections=1000)
        server.idle_timeouts = IdleTimeouts(both_s=_IDLE_S, stall_s=_IDLE_S)
        port = server.address.port
        names = [str(server.address).rpartition(":")[0], "127.0.0.1", "localhost", "[::1]", *options.name]
        hosts = [f"{name.lower()}{end}" for name in names for end in ([f":{port}", ""] if port == 80 else [f":{port}"])]
        Gateway(server, (options.chat_host, options.chat_port), hosts)
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
