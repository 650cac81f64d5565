"""Chat server in which the loops share one set of members behind a lock.

What it teaches: the plainest way to share. Each loop's thread enters and removes its own connections, and hands out
what they say to all; the lock keeps the set still while somebody walks over it.

What it costs: the lock is held for a whole broadcast, one ``send`` a member, so loops that have something to say, or
somebody to let in, wait for one another. When it wins: with one loop, where nobody ever waits, and wherever a broadcast
is short. It is never wrong, and that is worth starting with.

Not even the lock makes one conversation of it. Each member hears what another says in its order. But what a loop
sends to a connection of its own is there at once, and what it sends to one of another loop waits in that one's queue;
so two members may hear two messages, said at the same moment by two others, in different orders.

    python server_threaded.py --threads 2        and elsewhere        python client.py --name ann
"""

from __future__ import annotations

import threading

from chat_names import NamesChat
from chat_service import serve
from pymuduo import TcpConnection, TcpServer


class LockedChat(NamesChat):
    """Who hears is in one set; whoever touches it holds the lock."""

    def __init__(self, server: TcpServer) -> None:
        super().__init__(server)
        self._lock = threading.Lock()
        self._members: set[TcpConnection] = set()

    def enter(self, connection: TcpConnection) -> None:
        """Wait until nobody walks over the set, and add one."""
        with self._lock:
            self._members.add(connection)

    def leave(self, connection: TcpConnection) -> None:
        """Wait until nobody walks over the set, and take one out."""
        with self._lock:
            self._members.discard(connection)

    def tell_all(self, data: bytes) -> None:
        """Walk over the set; who wants to enter or leave meanwhile waits."""
        with self._lock:
            for member in self._members:
                member.send(data)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    serve(LockedChat, "chat server: a lock around the members")


if __name__ == "__main__":
    main()
