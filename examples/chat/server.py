"""Chat: what one says, all hear. The whole of the library in one program.

What it teaches: state that several threads want. With ``--threads`` the members' connections live on several loops,
and a message from any of them must reach the connections of all. What all share is confined to one thread here: the
room lives in the main loop, and the others bring it their news with ``run_in_loop``. There is no lock to forget, and
all members hear the same conversation in the same order, because one thread hands it out. So it can have what takes
one owner: names that are given once, and a list of who is here.

It costs a hop from the loop of who speaks to the main loop, and one from there to the loop of each who hears; the main
loop does all the work but the reading and writing. Three servers beside this one share without a room:

- ``server_threaded.py``: a set behind a lock;
- ``server_threaded_efficient.py``: a set that is never changed, but replaced;
- ``server_threaded_highperformance.py``: a set for each loop.

A broadcast is encoded once, and each ``send`` (which any thread may call) gets the same bytes. How little a member can
do who floods, or does not read, is in ``chat_service.py``.

    python server.py --threads 2        and elsewhere        python client.py --name ann
"""

from __future__ import annotations

import itertools

from chat_service import NAME, NO_NAME, TOO_LONG, ChatService, serve
from codec import MAX_MESSAGE_BYTES
from pymuduo import TcpConnection, TcpServer

_MAX_NAMES_TOLD = 500
_HELP = "* there are /name NAME, /who and /quit; anything else is said to all"


class Room(ChatService):
    """Who is here and what they hear. Lives in the main loop's thread.

    Everybody who is connected hears everything. Who has said something, or a name, has a name and is announced.
    """

    def __init__(self, server: TcpServer) -> None:
        super().__init__(server)
        self._members: dict[TcpConnection, str | None] = {}
        self._guest_numbers = itertools.count(1)

    # --- in the threads of the connections: bring the news ---

    def on_up(self, connection: TcpConnection) -> None:
        """Somebody has come."""
        self.main_loop.run_in_loop(self._enter, connection)

    def on_down(self, connection: TcpConnection) -> None:
        """Somebody has gone."""
        self.main_loop.run_in_loop(self._leave, connection)

    def on_texts(self, connection: TcpConnection, texts: list[str]) -> None:
        """Somebody has sent this."""
        self.main_loop.run_in_loop(self._take, connection, texts)

    # --- in the room's thread ---

    def _enter(self, connection: TcpConnection) -> None:
        self._members[connection] = None

    def _leave(self, connection: TcpConnection) -> None:
        name = self._members.pop(connection, None)
        if name is not None:
            self._tell_all(f"* {name} left")

    def _take(self, connection: TcpConnection, texts: list[str]) -> None:
        for text in texts:
            if connection not in self._members:
                return
            command, _, argument = text.partition(" ")
            if command == "/name":
                self._rename(connection, argument.strip())
            elif command == "/who":
                self.tell(connection, self._who())
            elif command == "/quit":
                self._leave(connection)
                self.hang_up(connection)
            elif command.startswith("/"):
                self.tell(connection, _HELP)
            else:
                self._say(connection, text)

    def _rename(self, connection: TcpConnection, name: str) -> None:
        old = self._members[connection]
        if name == old:
            return
        if not NAME.fullmatch(name):
            self.tell(connection, NO_NAME)
        elif name in self._members.values():
            self.tell(connection, f"* the name {name} is taken")
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
            self.tell(connection, TOO_LONG)
        else:
            self._tell_all(line)

    def _who(self) -> str:
        names = sorted(name for name in self._members.values() if name is not None)
        told = ", ".join(names[:_MAX_NAMES_TOLD]) or "nobody"
        more = f" and {len(names) - _MAX_NAMES_TOLD} more" if len(names) > _MAX_NAMES_TOLD else ""
        return f"* here: {told}{more}; {len(self._members) - len(names)} without a name"

    def _tell_all(self, text: str) -> None:
        data = self.codec.encode(text.encode())
        for member in self._members:
            member.send(data)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    serve(Room, "chat server: what one says, all hear")


if __name__ == "__main__":
    main()
