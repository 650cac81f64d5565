"""Chat server in which a broadcast needs no lock: the set of members is never changed, only replaced.

What it teaches: copy on write. A set that nobody changes can be read by any thread, for as long as it likes. Whoever
enters or leaves makes a new one and puts it in the place of the old one; a broadcast that is under way goes on over
the set that it began with. Only those who replace it need the lock, so that of two at once neither is forgotten; to
read which set is the current one is atomic on every build of Python.

What it costs: a copy of the set for each member who comes or goes: a thousand of them come in the time of half a
million members copied. When it wins: when people talk more than they come and go, which is the rule. muduo saves the
copy when no broadcast is under way, because it can ask how many hold the set; Python has no such question to ask.

As for the order in which members hear what others say, see ``server_threaded.py``: it is the same here.

    python server_threaded_efficient.py --threads 2        and elsewhere        python client.py --name ann
"""

from __future__ import annotations

import threading

from chat_names import NamesChat
from chat_service import serve
from pymuduo import TcpConnection, TcpServer


class SnapshotChat(NamesChat):
    """Who hears is in a set that is replaced, under the lock, as a whole."""

    def __init__(self, server: TcpServer) -> None:
        super().__init__(server)
        self._lock = threading.Lock()
        self._members: frozenset[TcpConnection] = frozenset()

    def enter(self, connection: TcpConnection) -> None:
        """Replace the set by one with one more."""
        with self._lock:
            self._members |= {connection}

    def leave(self, connection: TcpConnection) -> None:
        """Replace the set by one with one less."""
        with self._lock:
            self._members -= {connection}

    def tell_all(self, data: bytes) -> None:
        """Walk over the set of this moment, which stays as it is."""
        for member in self._members:
            member.send(data)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    serve(SnapshotChat, "chat server: a set of members that is replaced, not changed")


if __name__ == "__main__":
    main()
