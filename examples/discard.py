"""Discard (RFC 863): throw away whatever arrives, and log how fast it does.

What it teaches: counting across threads without a lock. Each I/O loop has a tally of its own, made in its thread by
the thread-init callback and written by that thread alone; a timer in the main loop reads them all. A sum that is a
moment old is all that a log needs.

    python discard.py        and elsewhere        nc 127.0.0.1 2009 < /dev/zero
"""

from __future__ import annotations

import argparse
import logging
import time

from pymuduo import Buffer, EventLoop, InetAddress, TcpConnection, TcpServer, Timestamp


class Tally:
    """What one loop has received; only that loop's thread writes it."""

    def __init__(self) -> None:
        self.bytes = 0
        self.messages = 0


class Meter:
    """Adds the tallies up and logs what has changed; the main loop's thread."""

    def __init__(self) -> None:
        self._tallies: list[Tally] = []
        self._last = (time.monotonic(), 0, 0)

    def add_loop(self, loop: EventLoop) -> None:
        """Give a loop its tally; in that loop's thread, before it serves (the loops start one after the other)."""
        loop.context = Tally()
        self._tallies.append(loop.context)

    def report(self) -> None:
        """Log the rates since the last report, if anything has arrived."""
        now = (
            time.monotonic(),
            sum(tally.bytes for tally in self._tallies),
            sum(tally.messages for tally in self._tallies),
        )
        seconds, count, messages = (a - b for a, b in zip(now, self._last, strict=True))
        self._last = now
        if messages:
            mib_per_s = count / seconds / (1 << 20)
            logging.info("%.3f MiB/s, %.0f messages/s of %.0f bytes", mib_per_s, messages / seconds, count / messages)


def on_connection(connection: TcpConnection) -> None:
    """Log who comes and who leaves."""
    logging.info("%s is %s", connection.peer_address, "up" if connection.connected else "down")


def on_message(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
    """Count, and drop."""
    tally = connection.loop.context
    tally.bytes += len(buffer)
    tally.messages += 1
    buffer.retrieve_all()


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="discard server: throws away whatever arrives, and logs how fast")
    parser.add_argument("--port", type=int, default=2009, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    parser.add_argument("--interval", type=float, default=3.0, help="seconds between reports; default %(default)s")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    meter = Meter()
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "discard")
            server.thread_num = options.threads
            loop.run_every(options.interval, meter.report)
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.thread_init_callback = meter.add_loop
        server.connection_callback = on_connection
        server.message_callback = on_message
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
