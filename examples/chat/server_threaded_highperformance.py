"""Chat server in which each loop has members of its own, and a message is handed over once a loop, not once a member.

What it teaches: to share nothing. Each loop has a set of the connections that live on it, which no other thread
touches. Who speaks hands the bytes to every loop, its own among them, and each loop sends them to its own members. The
lock is held while a message is put into the queues of the loops, two or four of them, so all queues have all messages
in one order: every member hears the same conversation, as in ``server.py``, and no thread walks over all members.

What it costs: a hop even for those who live on the loop of who speaks, so that a quiet chat with one loop is a little
slower. When it wins: with more than one loop and many members, because a hop for each of a thousand members costs more
than what is sent; the more members, the more it wins.

    python server_threaded_highperformance.py --threads 2        and elsewhere        python client.py --name ann
"""

from __future__ import annotations

import threading

from chat_names import NamesChat
from chat_service import serve
from pymuduo import EventLoop, TcpConnection, TcpServer


class LocalChat(NamesChat):
    """Who hears is in the contexts of the loops, a set in each that is confined to its thread."""

    def __init__(self, server: TcpServer) -> None:
        super().__init__(server)
        self._lock = threading.Lock()

    def enter(self, connection: TcpConnection) -> None:
        """Add one to the set of its loop."""
        if connection.loop.context is None:
            connection.loop.context = set()
        connection.loop.context.add(connection)

    def leave(self, connection: TcpConnection) -> None:
        """Take one out of the set of its loop."""
        connection.loop.context.discard(connection)

    def tell_all(self, data: bytes) -> None:
        """Hand the bytes to all loops, to each of them behind the same messages."""
        with self._lock:
            for loop in self.loops:
                loop.post(tell_members, (loop, data))


def tell_members(loop: EventLoop, data: bytes) -> None:
    """Send to all who live on this loop; in its thread."""
    for member in loop.context or ():
        member.send(data)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    serve(LocalChat, "chat server: a set of members for each loop")


if __name__ == "__main__":
    main()
