"""Chat: what one says, all hear. The whole of the library in one program.

What it teaches: state that several threads want. With ``--threads`` the members' connections live on several loops,
and a message from any of them must reach the connections of all. There are two ways that are right on every build of
Python, free-threaded or not:

- a table behind a lock, replaced as a whole by whoever changes it, so that a broadcast walks over a snapshot
  (muduo's ``server_threaded_efficient``); but two messages sent at once reach the members in different orders;
- a table that belongs to one thread. The others bring it their news with ``run_in_loop``.

This is the second: the room lives in the main loop. There is no lock to forget, and all members hear the same
conversation in the same order, because one thread hands it out. A broadcast is encoded once, and each ``send`` (which
any thread may call) gets the same bytes.

A member who reads too slowly must not hold the others up, nor fill our memory: beyond a mark of unread bytes it is
disconnected. To leave out messages instead would let it stay and misunderstand.

    python server.py --threads 2        and elsewhere        python client.py --name ann
"""

from __future__ import annotations

import argparse
import itertools
import logging
import re

from codec import MAX_MESSAGE_BYTES, LengthHeaderCodec, encode
from pymuduo import EventLoop, InetAddress, TcpConnection, TcpServer

_MAX_UNREAD_BYTES = 1 << 20
_PATIENCE_S = 10.0
_MAX_NAMES_TOLD = 500
_NAME = re.compile(r"(?!guest-)[\w.-]{1,32}")  # no spaces, no control characters, none of the names that we give
_HELP = "* there are /name NAME, /who and /quit; anything else is said to all"


class Room:
    """Who is here and what they hear. Lives in one loop's thread; connections of other loops come by ``run_in_loop``.

    Everybody who is connected hears everything. Who has said something, or a name, has a name and is announced.
    """

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._members: dict[TcpConnection, str | None] = {}
        self._guest_numbers = itertools.count(1)

    # --- callbacks: in the threads of the connections ---

    def on_connection(self, connection: TcpConnection) -> None:
        """Bring the news of a connection that is up or down."""
        self._loop.run_in_loop(self._enter if connection.connected else self._leave, connection)

    def on_message(self, connection: TcpConnection, message: bytes) -> None:
        """Bring what somebody sent."""
        self._loop.run_in_loop(self._take, connection, message.decode("utf-8", "replace").strip())

    # --- in the room's thread ---

    def _enter(self, connection: TcpConnection) -> None:
        self._members[connection] = None

    def _leave(self, connection: TcpConnection) -> None:
        name = self._members.pop(connection, None)
        if name is not None:
            self._tell_all(f"* {name} left")

    def _take(self, connection: TcpConnection, text: str) -> None:
        if connection not in self._members or not text:
            return
        command, _, argument = text.partition(" ")
        if command == "/name":
            self._rename(connection, argument.strip())
        elif command == "/who":
            self._tell(connection, self._who())
        elif command == "/quit":
            self._leave(connection)
            connection.shutdown()  # what it was told until now still arrives
            connection.force_close_with_delay(_PATIENCE_S)
        elif command.startswith("/"):
            self._tell(connection, _HELP)
        else:
            self._say(connection, text)

    def _rename(self, connection: TcpConnection, name: str) -> None:
        old = self._members[connection]
        if name == old:
            return
        if not _NAME.fullmatch(name):
            self._tell(connection, "* a name has 1 to 32 letters, digits, dots or hyphens, and is not guest-…")
        elif name in self._members.values():
            self._tell(connection, f"* the name {name} is taken")
        else:
            self._members[connection] = name
            self._tell_all(f"* {name} joined" if old is None else f"* {old} is now {name}")

    def _say(self, connection: TcpConnection, text: str) -> None:
        name = self._members[connection]
        if name is None:
            name = self._members[connection] = f"guest-{next(self._guest_numbers)}"
            self._tell_all(f"* {name} joined")
        line = f"{name}: {text}"
        if len(line.encode()) > MAX_MESSAGE_BYTES:
            self._tell(connection, "* too long: nobody heard that")
        else:
            self._tell_all(line)

    def _who(self) -> str:
        names = sorted(name for name in self._members.values() if name is not None)
        told = ", ".join(names[:_MAX_NAMES_TOLD]) or "nobody"
        more = f" and {len(names) - _MAX_NAMES_TOLD} more" if len(names) > _MAX_NAMES_TOLD else ""
        return f"* here: {told}{more}; {len(self._members) - len(names)} without a name"

    def _tell(self, connection: TcpConnection, text: str) -> None:
        connection.send(encode(text.encode()))

    def _tell_all(self, text: str) -> None:
        data = encode(text.encode())
        for member in self._members:
            member.send(data)


def on_high_water_mark(connection: TcpConnection, unread_bytes: int) -> None:
    """Disconnect a member who reads too slowly."""
    logging.warning("%s reads too slowly, %d bytes wait: disconnected", connection.name, unread_bytes)
    connection.force_close()


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="chat server: what one says, all hear")
    parser.add_argument("--port", type=int, default=3399, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        room = Room(loop)
        server = TcpServer(loop, InetAddress.any(options.port), "chat")
        server.thread_num = options.threads
        server.connection_callback = room.on_connection
        server.message_callback = LengthHeaderCodec(room.on_message).on_message
        server.high_water_mark = _MAX_UNREAD_BYTES
        server.high_water_mark_callback = on_high_water_mark
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
