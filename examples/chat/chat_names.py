"""Names for the chat servers in which nobody knows everybody: a name belongs to its connection.

``server.py`` has a room that knows all names, so that each is given once and ``/who`` can be answered. Whoever wants
neither needs no room: who says something, under which name, is known where the message arrives. It is in the context
of the connection, which only the thread of its loop touches. What is left to share is the set of who hears, and how
to share that is all in which those servers differ: see ``enter``, ``leave`` and ``tell_all`` in each of them.
"""

from __future__ import annotations

from abc import abstractmethod

from chat_service import NAME, NO_NAME, TOO_LONG, ChatService
from codec import MAX_MESSAGE_BYTES
from pymuduo import TcpConnection

_HELP = "* there are /name NAME and /quit; anything else is said to all"


class NamesChat(ChatService):
    """Turns what members send into lines for all. One read is one piece of bytes for all, however much was said."""

    # --- who hears; in the thread of the connection that it is about ---

    @abstractmethod
    def enter(self, connection: TcpConnection) -> None:
        """Let a connection hear what is told from now on."""

    @abstractmethod
    def leave(self, connection: TcpConnection) -> None:
        """Let it hear no more; harmless twice."""

    @abstractmethod
    def tell_all(self, data: bytes) -> None:
        """Send the same bytes to everybody who hears."""

    # --- what is said; in the thread of the connection ---

    def on_up(self, connection: TcpConnection) -> None:
        """Let somebody new hear; who has not said anything has no name."""
        self.enter(connection)

    def on_down(self, connection: TcpConnection) -> None:
        """Let somebody hear no more, and tell the others, once."""
        name, connection.context.name = connection.context.name, None
        self.leave(connection)
        if name is not None:
            self._say([f"* {name} left"])

    def on_texts(self, connection: TcpConnection, texts: list[str]) -> None:
        """Say to all what is no command."""
        if connection.context.has_quit:
            return
        lines: list[str] = []
        for text in texts:
            command, _, argument = text.partition(" ")
            if command == "/name":
                self._rename(connection, argument.strip(), lines)
            elif command == "/quit":
                connection.context.has_quit = True
                break
            elif command.startswith("/"):
                self.tell(connection, _HELP)
            else:
                self._speak(connection, text, lines)
        self._say(lines)
        if connection.context.has_quit:
            # Behind what is queued in this loop, which may be the very words that came before.
            connection.loop.post(self._quit, (connection,))

    def _rename(self, connection: TcpConnection, name: str, lines: list[str]) -> None:
        old = connection.context.name
        if not NAME.fullmatch(name):
            self.tell(connection, NO_NAME)
        elif name != old:
            connection.context.name = name
            lines.append(f"* {name} joined" if old is None else f"* {old} is now {name}")

    def _speak(self, connection: TcpConnection, text: str, lines: list[str]) -> None:
        if connection.context.name is None:
            connection.context.name = f"guest-{connection.number}"  # nothing to share: connections are numbered
            lines.append(f"* {connection.context.name} joined")
        line = f"{connection.context.name}: {text}"
        if len(line.encode()) > MAX_MESSAGE_BYTES:
            self.tell(connection, TOO_LONG)
        else:
            lines.append(line)

    def _quit(self, connection: TcpConnection) -> None:
        self.on_down(connection)
        self.hang_up(connection)

    def _say(self, lines: list[str]) -> None:
        if lines:
            self.tell_all(self.codec.encode_all([line.encode() for line in lines]))
