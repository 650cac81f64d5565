"""Multiplexer: many clients, one connection to the backend. The other end is ``demultiplexer.py``.

What it teaches: giving names to connections on the wire. Each client gets a number; what it says is framed with that
(see ``mux_codec.py``), and its coming and leaving are told as commands. When the link breaks, the clients have lost
whoever they were talking to, so they are closed, and newcomers as well until the link is there again; it is made anew
with back-off. How one link is shared fairly, and how far it can't be, stands in ``mux_link.py``.

The wire is that of muduo's multiplexer, and like there it knows no half-close: a client that says FIN has left.

    python demultiplexer.py --backend 127.0.0.1:2007       python multiplexer.py --backend 127.0.0.1:9999
    and elsewhere: nc 127.0.0.1 3333

The link, the clients' numbers and the table of them belong to the main loop; with ``--threads`` the clients live on
other loops, and come to it by ``run_in_loop``.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections import deque

from mux_codec import MAX_ID, Frame, MuxCodec
from mux_link import Link, Member, call_in, link_timeouts, member_timeouts, say_goodbye
from pymuduo import EventLoop, InetAddress, TcpClient, TcpConnection, TcpServer, Timestamp

_DISCONNECT = re.compile(rb"DISCONNECT ([0-9]{1,5})(?:\r\n)?")


class Numbers:
    """The numbers of a link: each is in use until both ends have said goodbye to it."""

    def __init__(self) -> None:
        self._next = 1
        self._free: deque[int] = deque()
        self._leaving: dict[int, None] = {}  # the other end has still to say goodbye; the oldest first

    def take(self) -> int | None:
        """Return a number for a newcomer; None: all are in use."""
        if self._free:
            return self._free.popleft()
        if self._next <= MAX_ID:
            self._next += 1
            return self._next - 1
        if not self._leaving:
            return None
        number = next(iter(self._leaving))  # 65,535 clients later: this other end says no goodbyes
        del self._leaving[number]
        return number

    def leave(self, number: int) -> None:
        """Note that our end has said goodbye first."""
        self._leaving[number] = None

    def give_back(self, number: int) -> bool:
        """Note that the other end has said goodbye second; False if it is the first."""
        if number not in self._leaving:
            return False
        del self._leaving[number]
        self._free.append(number)
        return True


class Multiplexer:
    """Clients on one side, the link on the other."""

    def __init__(self, loop: EventLoop, backend: InetAddress) -> None:
        self._loop = loop
        self._link: Link | None = None
        self._numbers = Numbers()
        self._members: dict[TcpConnection, Member] = {}
        self._timeouts = link_timeouts()
        self._codec = MuxCodec(batch_callback=self._on_frames)
        client = TcpClient(loop, backend, "link", retry=True, jitter=True)
        client.connection_callback = self._on_link
        client.message_callback = self._codec.on_message
        client.connect()

    def on_client(self, connection: TcpConnection) -> None:
        """Bring the news of a client to the main loop; in the client's."""
        if connection.connected:
            connection.stop_read()
            call_in(self._loop, self._enter, connection)
        else:
            call_in(self._loop, self._leave, connection)

    # --- in the main loop ---

    def _enter(self, connection: TcpConnection) -> None:
        number = None if self._link is None else self._numbers.take()
        if self._link is None or number is None:
            logging.warning("%s is sent away: no %s", connection.peer_address, "link" if number is None else "number")
            call_in(connection.loop, say_goodbye, connection)
            return
        member = self._members[connection] = Member(self._link, number, str(connection.peer_address), connection.loop)
        self._link.add(member)
        self._link.say(f"CONN {number} FROM {member.name} IS UP\r\n")
        logging.info("%s is up as %d", member.name, number)
        call_in(connection.loop, member.attach, connection)

    def _leave(self, connection: TcpConnection) -> None:
        member = self._members.pop(connection, None)
        if member is not None:
            self._say_goodbye_to(member)

    def _say_goodbye_to(self, member: Member) -> bool:
        if not member.link.remove(member):
            return False
        logging.info("%s is down, and was %d", member.name, member.id)
        member.link.say(f"CONN {member.id} FROM {member.name} IS DOWN\r\n")
        self._numbers.leave(member.id)
        return True

    def _on_link(self, connection: TcpConnection) -> None:
        logging.info("link to %s is %s", connection.peer_address, "up" if connection.connected else "down")
        if connection.connected:
            self._timeouts.watch(connection)
            self._numbers = Numbers()
            link = self._link = connection.context = Link(connection, self._codec)
            link.command_callback = self._on_command
            link.slow_callback = self._on_slow_client
        else:
            self._link = None
            self._members.clear()
            connection.context.end()

    def _on_frames(self, connection: TcpConnection, frames: list[Frame], receive_time: Timestamp) -> None:
        connection.context.take_frames(frames)

    def _on_command(self, link: Link, command: bytes) -> None:
        parsed = _DISCONNECT.fullmatch(command)
        if parsed is None:
            logging.warning("the backend says what is not understood: %r", command)
            return
        number = int(parsed[1])
        if not self._numbers.give_back(number) and (member := link.members.get(number)) is not None:
            self._say_goodbye_to(member)
            self._numbers.give_back(number)
            call_in(member.loop, member.leave)

    def _on_slow_client(self, link: Link, member: Member) -> None:
        self._say_goodbye_to(member)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="multiplexer: many clients share one connection to the backend")
    parser.add_argument("--backend", default="127.0.0.1:9999", metavar="HOST:PORT", help="default %(default)s")
    parser.add_argument("--port", type=int, default=3333, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            multiplexer = Multiplexer(loop, InetAddress.parse(options.backend))
            server = TcpServer(loop, InetAddress.any(options.port), "multiplexer")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.connection_callback = multiplexer.on_client
        server.idle_timeouts = member_timeouts()
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
