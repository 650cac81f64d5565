"""Demultiplexer: for each client of a multiplexer, a connection of its own to the backend.

What it teaches: connections that somebody else orders. The link says that a client has come, and a connection is made;
what the client says before that is there is kept, and sent first. Whichever side leaves, the other one is told behind
the last byte. When a link breaks, its clients are gone: their connections are finished in good order.

It takes any number of links, on as many loops as ``--threads`` says. What a link carries lives in the loop of the
link, so nothing is shared.

    python demultiplexer.py --backend 127.0.0.1:2007       and elsewhere        python multiplexer.py
"""

from __future__ import annotations

import argparse
import logging
import re

from mux_codec import MAX_ID, Frame, MuxCodec
from mux_link import Link, Member, link_timeouts, member_timeouts
from pymuduo import EventLoop, InetAddress, TcpClient, TcpConnection, TcpServer, Timestamp

_CONN = re.compile(rb"CONN ([0-9]{1,5}) FROM ([!-~]+) IS (UP|DOWN)(?:\r\n)?")


class Demultiplexer:
    """Links on one side, connections to the backend on the other."""

    def __init__(self, backend: InetAddress) -> None:
        self._backend = backend
        self._timeouts = member_timeouts()
        self.codec = MuxCodec(batch_callback=self._on_frames)

    def on_link(self, connection: TcpConnection) -> None:
        """Begin or end with a link."""
        logging.info("link from %s is %s", connection.peer_address, "up" if connection.connected else "down")
        if connection.connected:
            link = connection.context = Link(connection, self.codec)
            link.command_callback = self._on_command
            link.slow_callback = self._say_goodbye_to
        else:
            connection.context.end()

    def _on_frames(self, connection: TcpConnection, frames: list[Frame], receive_time: Timestamp) -> None:
        connection.context.take_frames(frames)

    def _on_command(self, link: Link, command: bytes) -> None:
        parsed = _CONN.fullmatch(command)
        number = int(parsed[1]) if parsed else 0
        member = link.members.get(number)
        is_up = parsed is not None and parsed[3] == b"UP"
        if parsed is None or not 1 <= number <= MAX_ID or (is_up and member is not None):
            logging.warning("link from %s: %r makes no sense; cut off", link.connection.peer_address, command)
            link.connection.force_close()
        elif is_up:
            self._connect(Member(link, number, parsed[2].decode("ascii"), link.loop))
        elif member is not None:
            self._say_goodbye_to(link, member)
            member.leave()

    def _connect(self, member: Member) -> None:
        def on_connection(connection: TcpConnection) -> None:
            if connection.connected:
                self._timeouts.watch(connection)
                member.attach(connection)
            else:
                self._say_goodbye_to(member.link, member)

        def on_failed(client: TcpClient, error: Exception) -> None:
            logging.warning("no backend for %s: %s", member.name, error)
            self._say_goodbye_to(member.link, member)

        member.link.add(member)
        logging.info("%s is up as %d", member.name, member.id)
        client = TcpClient(member.loop, self._backend, f"for-{member.name}")
        client.connection_callback = on_connection
        client.connect_failed_callback = on_failed
        client.connect()

    def _say_goodbye_to(self, link: Link, member: Member) -> None:
        if link.remove(member):
            logging.info("%s is down, and was %d", member.name, member.id)
            link.say(f"DISCONNECT {member.id}\r\n")


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="demultiplexer: connects each client of a multiplexer to the backend")
    parser.add_argument("--backend", default="127.0.0.1:2007", metavar="HOST:PORT", help="default %(default)s")
    parser.add_argument("--port", type=int, default=9999, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            demultiplexer = Demultiplexer(InetAddress.parse(options.backend))
            server = TcpServer(loop, InetAddress.any(options.port), "demultiplexer")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.connection_callback = demultiplexer.on_link
        server.message_callback = demultiplexer.codec.on_message
        server.idle_timeouts = link_timeouts()
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
