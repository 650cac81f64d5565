"""HTTP proxy for tunnels: ``CONNECT host:port``, and from then on bytes, whatever they are.

What it teaches: reading a head that somebody else wrote. It is taken from the input buffer when its end is there and
not before, bounded in bytes and in time, and read strictly: what two programs could understand in two ways is
refused. What stands behind it in the buffer is no longer HTTP, and goes on as it is. Every refusal has a status that
says whose fault it was: the client's (4xx), or the way on (502 if there is none, 504 if nobody answers in time).

It listens on the loopback interface unless told otherwise; ``--user`` asks for a name and a password.

    python http_connect.py        and elsewhere        curl --proxytunnel --proxy 127.0.0.1:8080 http://example.org/

State belongs to one connection, and is touched in its loop alone.
"""

from __future__ import annotations

import argparse
import base64
import hmac
import logging
import re
from http import HTTPStatus

from pymuduo import Buffer, EventLoop, InetAddress, Pipe, TcpConnection, TcpServer, Timestamp
from way_on import WayOn, proxy_timeouts, seconds, turn_away

_PATIENCE_S = 10.0
_MAX_HEAD_BYTES = 8192
_END = b"\r\n\r\n"
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.[01]")
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9A-Za-z._-]{1,253})):([0-9]{1,5})")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class HttpError(Exception):
    """The client is turned away with a status, and fields that belong to it."""

    def __init__(self, status: HTTPStatus, message: str, fields: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.fields = fields

    def encode(self) -> bytes:
        """Return the answer: the reason is in the body, for people."""
        body = f"{self}\n".encode("ascii", "replace")
        head = f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\n{self.fields}Connection: close\r\n"
        return f"{head}Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def parse_head(head: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]]]:
    """Return the method, the target, and the fields with their names in lower case.

    Raises:
        HttpError: it is no head of an HTTP/1 request, or one that could be read in two ways.
    """
    first, *lines = head.split(b"\r\n")
    request = _REQUEST_LINE.fullmatch(first)
    fields = [_FIELD.fullmatch(line) for line in lines]
    if request is None or not all(fields):
        raise HttpError(HTTPStatus.BAD_REQUEST, "no request of HTTP/1")
    return request[1], request[2], [(field[1].lower(), field[2]) for field in fields if field]


def parse_authority(text: bytes) -> InetAddress | tuple[str, int]:
    """Return where ``host:port``, ``1.2.3.4:port`` or ``[address]:port`` leads.

    Raises:
        HttpError: it is none of them.
    """
    parts = _AUTHORITY.fullmatch(text.decode("ascii"))
    try:
        if parts is None or not 0 < int(parts[3]) <= 65535:
            raise ValueError
        return InetAddress(parts[1], int(parts[3])) if parts[1] else (parts[2], int(parts[3]))
    except ValueError:
        raise HttpError(HTTPStatus.BAD_REQUEST, "the target of CONNECT is host:port") from None


class HttpConnect:
    """The proxy: what all visits have in common."""

    def __init__(self, user: str | None, patience_s: float) -> None:
        self.credentials = None if user is None else base64.b64encode(user.encode())
        self.patience_s = patience_s
        self.timeouts = proxy_timeouts()

    def on_connection(self, near: TcpConnection) -> None:
        """Begin with who comes, and end with who leaves."""
        if near.connected:
            near.context = Visit(self, near)
        else:
            near.context.end()
            near.context = None

    def check(self, fields: list[tuple[bytes, bytes]]) -> None:
        """Let those pass who have the right name and password, or anybody if none are asked for.

        Raises:
            HttpError: who is it?
        """
        if self.credentials is None:
            return
        for name, value in fields:
            scheme, _, credentials = value.partition(b" ")
            is_basic = name == b"proxy-authorization" and scheme.lower() == b"basic"
            if is_basic and hmac.compare_digest(credentials.strip(), self.credentials):
                return
        challenge = 'Proxy-Authenticate: Basic realm="proxy"\r\n'
        raise HttpError(HTTPStatus.PROXY_AUTHENTICATION_REQUIRED, "a name and a password are needed", challenge)


class Visit:
    """One client: its head, and the way on."""

    def __init__(self, proxy: HttpConnect, near: TcpConnection) -> None:
        self._proxy = proxy
        self._near = near
        self._way = WayOn(near, proxy.timeouts, proxy.patience_s)
        self._way.found_callback = lambda far: near.send(_ESTABLISHED)
        self._way.failed_callback = self._on_no_way_on
        self._way.closed_callback = self._on_closed
        late = HttpError(HTTPStatus.REQUEST_TIMEOUT, "the request takes too long")
        self._timer = near.loop.run_after(proxy.patience_s, self._refuse, late)
        near.message_callback = self._on_message

    def end(self) -> None:
        """Let go of what is under way: the client has left."""
        self._near.loop.cancel(self._timer)
        self._way.give_up()

    def _on_message(self, near: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        end = buffer.find(_END)
        try:
            if end > _MAX_HEAD_BYTES or (end < 0 and len(buffer) > _MAX_HEAD_BYTES):
                raise HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"at most {_MAX_HEAD_BYTES} bytes of head")
            if end < 0:
                return
            head = buffer.retrieve_as_bytes(end)
            buffer.retrieve(len(_END))
            method, target, fields = parse_head(head)
            if method != b"CONNECT":
                raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, "nothing but CONNECT is served", "Allow: CONNECT\r\n")
            self._proxy.check(fields)
            address = parse_authority(target)
        except HttpError as e:
            self._refuse(e)
        else:
            near.loop.cancel(self._timer)
            self._way.seek(address)

    def _refuse(self, error: HttpError) -> None:
        logging.info("%s is refused: %d, %s", self._near.peer_address, error.status.value, error)
        self._near.loop.cancel(self._timer)
        turn_away(self._near, error.encode())

    def _on_no_way_on(self, error: Exception) -> None:
        status = HTTPStatus.GATEWAY_TIMEOUT if isinstance(error, TimeoutError) else HTTPStatus.BAD_GATEWAY
        self._refuse(HttpError(status, str(error)))

    def _on_closed(self, pipe: Pipe) -> None:
        counts = pipe.forth.byte_count, pipe.back.byte_count
        addresses = pipe.one.peer_address, pipe.other.peer_address
        logging.info("%s has left %s: %d bytes sent, %d received", *addresses, *counts)


def main() -> None:
    """Make tunnels until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="HTTP proxy that serves CONNECT")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; default %(default)s")
    parser.add_argument("--port", type=int, default=8080, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    parser.add_argument("--user", metavar="NAME:PASSWORD", help="serve nobody else")
    parser.add_argument(
        "--patience", type=seconds, default=_PATIENCE_S, help="seconds to ask in, and again to connect in; %(default)g"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        proxy = HttpConnect(options.user, options.patience)
        try:
            server = TcpServer(loop, InetAddress(options.host, options.port), "http-connect")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.connection_callback = proxy.on_connection
        server.idle_timeouts = proxy.timeouts
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
