"""What all the chat servers share: options, limits, whole messages, and a bound on what one member can start.

A member who sends faster than its words can be handed out would fill the queues of the loops. So whenever it has sent
another 128 KiB or 256 messages (a long name makes much of short ones), it is not read, nor is what it has sent already
handed out, until everything that was queued before has been run in every loop: a call goes round through the loops,
each in its turn, and its return is the permission to go on. Ordinary talk never meets that.

A member who does not read can't fill our memory either: with more than a mebibyte unread it is cut off. To leave out
messages instead would let it stay and misunderstand.

The service itself holds nothing that changes once the loops run; the bookkeeping of a connection is in its context,
which only its own thread touches.
"""

from __future__ import annotations

import argparse
import logging
import re
from abc import ABC, abstractmethod

from codec import HEADER_BYTES, MAX_MESSAGE_BYTES
from pymuduo import EventLoop, InetAddress, TcpConnection, TcpServer, Timestamp
from pymuduo.codec import LengthHeaderCodec

NAME = re.compile(r"(?!guest-)[\w.-]{1,32}")  # no spaces, no control characters, none of the names that we give
NO_NAME = "* a name has 1 to 32 letters, digits, dots or hyphens, and is not guest-…"
TOO_LONG = "* too long: nobody heard that"
_MAX_UNREAD_BYTES = 1 << 20
_MAX_BYTES_AHEAD = 1 << 17
_MAX_MESSAGES_AHEAD = 256
_PATIENCE_S = 10.0


class Member:
    """What we know of who is at the other end; the context of its connection, and confined to that one's loop."""

    __slots__ = ("handed_out_bytes", "has_quit", "messages_ahead", "name", "texts")

    def __init__(self) -> None:
        self.texts: list[str] = []  # what it has sent and is not handed out yet: of one read at most
        self.messages_ahead = 0  # so many have been handed out since a call last went round,
        self.handed_out_bytes = 0  # and so many bytes of all that it has sent had been, then
        self.has_quit = False
        self.name: str | None = None


class ChatService(ABC):
    """Gives a server what it takes to be a chat; who hears what, a derived class decides.

    Attributes:
        codec: for what is sent.
        loops: those that connections live on; complete before the first connection is up.
    """

    def __init__(self, server: TcpServer) -> None:
        self.codec = LengthHeaderCodec(
            batch_callback=self._on_messages, header_bytes=HEADER_BYTES, max_bytes=MAX_MESSAGE_BYTES
        )
        self.loops: list[EventLoop] = []
        self.main_loop = server.loop
        server.thread_init_callback = self.loops.append  # the loops start one after the other
        server.connection_callback = self._on_connection
        server.message_callback = self.codec.on_message
        server.max_output_bytes = _MAX_UNREAD_BYTES

    # --- what a chat decides; in the thread of the connection ---

    @abstractmethod
    def on_up(self, connection: TcpConnection) -> None:
        """Take note of somebody new."""

    @abstractmethod
    def on_down(self, connection: TcpConnection) -> None:
        """Take note that somebody is gone."""

    @abstractmethod
    def on_texts(self, connection: TcpConnection, texts: list[str]) -> None:
        """Take what somebody has sent, nothing empty."""

    # --- what it may use ---

    def tell(self, connection: TcpConnection, text: str) -> None:
        """Tell one member something; from any thread."""
        connection.send(self.codec.encode(text.encode()))

    def hang_up(self, connection: TcpConnection) -> None:
        """End a connection in good order: what it was told until now still arrives; from any thread."""
        connection.shutdown(within_s=_PATIENCE_S)

    # --- private; in the thread of the connection ---

    def _on_connection(self, connection: TcpConnection) -> None:
        logging.info("%s is %s", connection.peer_address, "up" if connection.connected else "down")
        if connection.connected:
            connection.context = Member()
            self.on_up(connection)
        else:
            self.on_down(connection)

    def _on_messages(self, connection: TcpConnection, messages: list[bytes], receive_time: Timestamp) -> None:
        connection.context.texts += [text for m in messages if (text := m.decode("utf-8", "replace").strip())]
        if connection.is_reading:  # else no call has come back yet, and the one that does will see to it
            self._hand_out(connection)

    def _hand_out(self, connection: TcpConnection) -> None:
        member = connection.context
        room = _MAX_MESSAGES_AHEAD - member.messages_ahead
        texts, member.texts = member.texts[:room], member.texts[room:]
        if texts:
            self.on_texts(connection, texts)
        member.messages_ahead += len(texts)
        ahead_bytes = connection.bytes_received - member.handed_out_bytes
        if member.messages_ahead >= _MAX_MESSAGES_AHEAD or ahead_bytes >= _MAX_BYTES_AHEAD:
            connection.stop_read()
            self._go_round(connection, [self.main_loop, *self.loops])
        else:
            connection.start_read()

    def _go_round(self, connection: TcpConnection, loops: list[EventLoop]) -> None:
        """Go through the loops, behind all that was queued in them, and home."""
        if loops:
            loops[0].post(self._go_round, (connection, loops[1:]))
        else:
            connection.loop.post(self._go_on, (connection,))

    def _go_on(self, connection: TcpConnection) -> None:
        member = connection.context
        member.messages_ahead = 0
        member.handed_out_bytes = connection.bytes_received
        if not connection.disconnected:
            self._hand_out(connection)


def serve(service: type[ChatService], description: str) -> None:
    """Be a chat server until Ctrl-C or SIGTERM: what the servers' ``main`` does."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, default=3399, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "chat")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        service(server)
        server.start()
        loop.run()
