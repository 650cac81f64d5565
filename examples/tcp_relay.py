"""TCP relay: whoever connects is connected on to another address, byte for byte.

What it teaches: being server and client at once, and coupling the two connections. Neither end can fill our memory:
when one reads slowly, the other one is not read. The end of one direction is passed on, and the other goes on.

    python tcp_relay.py --to 127.0.0.1:2007        and elsewhere        nc 127.0.0.1 2000
"""

from __future__ import annotations

import argparse
import logging

from pymuduo import EventLoop, IdleTimeouts, InetAddress, Pipe, TcpClient, TcpConnection, TcpServer, pipe

_IDLE_S = 3600.0
_STALL_S = 60.0


class Relay:
    """Who has come and waits for the way on has the client that is looking for it as its context."""

    def __init__(self, target: InetAddress) -> None:
        self.target = target
        self.timeouts = IdleTimeouts(both_s=_IDLE_S, stall_s=_STALL_S)

    def on_connection(self, near: TcpConnection) -> None:
        """Look for the way on in the loop of who has come, so that the bytes change no thread."""
        if not near.connected:
            if near.context is not None:
                near.context.stop()
                near.context = None
            return
        near.stop_read()
        client = near.context = TcpClient(near.loop, self.target, f"{near.name}-on")
        client.connection_callback = lambda far: self.on_way_on(near, far)
        client.connect_failed_callback = lambda client, error: self.on_no_way_on(near, error)
        client.connect()

    def on_way_on(self, near: TcpConnection, far: TcpConnection) -> None:
        """Couple the two; the pipe sees to the rest."""
        if far.connected:
            self.timeouts.watch(far)
            pipe(near, far).closed_callback = self.on_closed

    def on_no_way_on(self, near: TcpConnection, error: Exception) -> None:
        """Send away who came in vain."""
        logging.warning("%s can't be connected to %s: %s", near.peer_address, self.target, error)
        near.force_close()

    def on_closed(self, coupled: Pipe) -> None:
        """Tell what went through."""
        counts = coupled.forth.byte_count, coupled.back.byte_count
        logging.info("%s has left: %d bytes sent, %d received", coupled.one.peer_address, *counts)


def main() -> None:
    """Relay until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="TCP relay: connects whoever connects to another address")
    parser.add_argument("--to", default="127.0.0.1:2007", metavar="HOST:PORT", help="where to; default %(default)s")
    parser.add_argument("--port", type=int, default=2000, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            relay = Relay(InetAddress.parse(options.to))
            server = TcpServer(loop, InetAddress.any(options.port), "relay")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.connection_callback = relay.on_connection
        server.idle_timeouts = relay.timeouts
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
