"""SOCKS proxy, versions 4, 4a and 5 on one port: connects on to wherever the client asks.

What it teaches: a conversation before the bytes flow. The message callback takes one step after the other from the
input buffer, as far as they are complete; each step names the next one, and the last one hands over to ``WayOn``. The
conversation is bounded in bytes and in time, or peers that begin and never finish would fill the proxy. Names are
looked up beside the loop, so that a silent name server holds up nobody else.

An open proxy is used by strangers within hours: it listens on the loopback interface unless told otherwise, and
``--user`` asks for a name and a password, which version 4 has no place for and is refused then.

    python socks.py        and elsewhere        curl --socks5-hostname 127.0.0.1:1080 http://example.org/

State belongs to one connection, and is touched in its loop alone.
"""

from __future__ import annotations

import argparse
import hmac
import logging
from collections.abc import Callable

from pymuduo import Buffer, EventLoop, InetAddress, Pipe, TcpConnection, TcpServer, Timestamp
from socks_messages import (
    CONNECT,
    MAX_MESSAGE_BYTES,
    NO_METHOD,
    NO_PASSWORD,
    PASSWORD,
    Reply,
    Request,
    SocksError,
    encode_reply,
    parse_methods,
    parse_password,
    parse_request4,
    parse_request5,
    reply_to,
)
from way_on import WayOn, proxy_timeouts, seconds, turn_away

_PATIENCE_S = 10.0


class Socks:
    """The proxy: what all visits have in common."""

    def __init__(self, user: tuple[bytes, bytes] | None, patience_s: float) -> None:
        self.user = user
        self.patience_s = patience_s
        self.timeouts = proxy_timeouts()

    def on_connection(self, near: TcpConnection) -> None:
        """Begin with who comes, and end with who leaves."""
        if near.connected:
            near.context = Visit(self, near)
        else:
            near.context.end()
            near.context = None

    def is_known(self, user: tuple[bytes, bytes]) -> bool:
        """Whether name and password are right; takes as long for a good guess as for a bad one."""
        if self.user is None:
            return False
        is_name, is_password = (
            hmac.compare_digest(given, wanted) for given, wanted in zip(user, self.user, strict=True)
        )
        return is_name and is_password


class Visit:
    """One client's conversation. A step gets the bytes so far and returns how many it has taken; 0: it needs more."""

    def __init__(self, proxy: Socks, near: TcpConnection) -> None:
        self._proxy = proxy
        self._near = near
        self._step: Callable[[bytes], int] | None = self._take_greeting
        self._timer = near.loop.run_after(proxy.patience_s, self._refuse, SocksError("the request takes too long"))
        self._way: WayOn | None = None
        self._request: Request | None = None
        near.message_callback = self._on_message

    def end(self) -> None:
        """Let go of what is under way: the client has left."""
        self._near.loop.cancel(self._timer)
        if self._way is not None:
            self._way.give_up()

    def _on_message(self, near: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        try:
            while self._step is not None and len(buffer) > 0:
                head = bytes(buffer.peek(min(len(buffer), MAX_MESSAGE_BYTES)))
                taken = self._step(head)
                if taken == 0:
                    if len(head) == MAX_MESSAGE_BYTES:
                        raise SocksError(f"a message of more than {MAX_MESSAGE_BYTES} bytes")
                    return
                buffer.retrieve(taken)
        except SocksError as e:
            self._refuse(e)

    # --- steps ---

    def _take_greeting(self, data: bytes) -> int:
        if data[0] == 4:
            return self._take_request(data, parse_request4)
        if data[0] != 5:
            raise SocksError(f"version {data[0]} is not SOCKS")
        parsed = parse_methods(data)
        if parsed is None:
            return 0
        methods, taken = parsed
        method = NO_PASSWORD if self._proxy.user is None else PASSWORD
        if method not in methods:
            raise SocksError(f"no method that is wanted is among {methods!r}", bytes([5, NO_METHOD]))
        self._near.send(bytes([5, method]))
        self._step = self._take_request5 if method == NO_PASSWORD else self._take_password
        return taken

    def _take_password(self, data: bytes) -> int:
        parsed = parse_password(data)
        if parsed is None:
            return 0
        user, taken = parsed
        if not self._proxy.is_known(user):
            raise SocksError(f"wrong name or password for {user[0]!r}", bytes([1, 1]))
        self._near.send(bytes([1, 0]))
        self._step = self._take_request5
        return taken

    def _take_request5(self, data: bytes) -> int:
        return self._take_request(data, parse_request5)

    def _take_request(self, data: bytes, parse: Callable[[bytes], tuple[Request, int] | None]) -> int:
        parsed = parse(data)
        if parsed is None:
            return 0
        request, taken = parsed
        if request.version == 4 and self._proxy.user is not None:
            raise SocksError("version 4 has no password", encode_reply(4, Reply.NOT_ALLOWED))
        if request.command != CONNECT:
            refusal = encode_reply(request.version, Reply.COMMAND_NOT_SUPPORTED)
            raise SocksError(f"command {request.command} is not supported", refusal)
        self._step = None
        self._request = request
        self._near.loop.cancel(self._timer)
        self._way = WayOn(self._near, self._proxy.timeouts, self._proxy.patience_s)
        self._way.found_callback = self._on_way_on
        self._way.failed_callback = self._on_no_way_on
        self._way.closed_callback = self._on_closed
        self._way.seek(request.target)
        return taken

    # --- what becomes of it ---

    def _refuse(self, error: SocksError) -> None:
        logging.info("%s is refused: %s", self._near.peer_address, error)
        self._step = None
        turn_away(self._near, error.last_words)

    def _on_way_on(self, far: TcpConnection) -> None:
        assert self._request is not None
        assert isinstance(far.local_address, InetAddress)
        self._near.send(encode_reply(self._request.version, Reply.SUCCEEDED, far.local_address))

    def _on_no_way_on(self, error: Exception) -> None:
        assert self._request is not None
        self._refuse(SocksError(str(error), encode_reply(self._request.version, reply_to(error))))

    def _on_closed(self, pipe: Pipe) -> None:
        counts = pipe.forth.byte_count, pipe.back.byte_count
        logging.info(
            "%s has left %s: %d bytes sent, %d received", pipe.one.peer_address, pipe.other.peer_address, *counts
        )


def name_and_password(text: str) -> tuple[bytes, bytes]:
    """Return both, each of 1 to 255 bytes; the type of ``--user``."""
    name, _, password = text.encode().partition(b":")
    if not (1 <= len(name) <= 255 and 1 <= len(password) <= 255):
        raise ValueError("a name and a password are needed, each of 1 to 255 bytes")
    return name, password


def main() -> None:
    """Connect clients on until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="SOCKS proxy, versions 4, 4a and 5")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; default %(default)s")
    parser.add_argument("--port", type=int, default=1080, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    parser.add_argument("--user", type=name_and_password, metavar="NAME:PASSWORD", help="serve nobody else")
    parser.add_argument(
        "--patience", type=seconds, default=_PATIENCE_S, help="seconds to ask in, and again to connect in; %(default)g"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        proxy = Socks(options.user, options.patience)
        try:
            server = TcpServer(loop, InetAddress(options.host, options.port), "socks")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.connection_callback = proxy.on_connection
        server.idle_timeouts = proxy.timeouts
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
