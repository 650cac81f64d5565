"""Character generator (RFC 864): send a pattern for as long as the peer reads, and log how fast.

What it teaches: sending without end. A loop around ``send`` would queue for ever; here the write-complete callback,
which comes when the kernel has taken everything, sends the next block. So one block at most waits in our memory, and
the peer sets the pace. (Counting works as in discard.py.)

    python chargen.py        and elsewhere        nc 127.0.0.1 2019 | head
"""

from __future__ import annotations

import argparse
import logging
import time

from pymuduo import EventLoop, InetAddress, TcpConnection, TcpServer

_PRINTABLE = bytes(range(ord(" "), ord("~") + 1))
# Lines of 72 characters, each beginning one character later in the ring than the line before it; all 95 of them.
_BLOCK = b"".join((_PRINTABLE * 2)[start : start + 72] + b"\r\n" for start in range(len(_PRINTABLE)))


class Tally:
    """What one loop has sent; only that loop's thread writes it."""

    def __init__(self) -> None:
        self.bytes = 0


class Meter:
    """Adds the tallies up and logs what has changed; the main loop's thread."""

    def __init__(self) -> None:
        self._tallies: list[Tally] = []
        self._last = (time.monotonic(), 0)

    def add_loop(self, loop: EventLoop) -> None:
        """Give a loop its tally; in that loop's thread, before it serves (the loops start one after the other)."""
        loop.context = Tally()
        self._tallies.append(loop.context)

    def report(self) -> None:
        """Log the rate since the last report, if anybody has read."""
        now = (time.monotonic(), sum(tally.bytes for tally in self._tallies))
        seconds, count = (a - b for a, b in zip(now, self._last, strict=True))
        self._last = now
        if count:
            logging.info("%.3f MiB/s", count / seconds / (1 << 20))


def on_connection(connection: TcpConnection) -> None:
    """Log who comes and who leaves, and send the first block."""
    logging.info("%s is %s", connection.peer_address, "up" if connection.connected else "down")
    if connection.connected:
        connection.send(_BLOCK)


def on_write_complete(connection: TcpConnection) -> None:
    """Count the block that has left, and send the next."""
    connection.loop.context.bytes += len(_BLOCK)
    connection.send(_BLOCK)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="chargen server: sends a pattern for as long as the peer reads")
    parser.add_argument("--port", type=int, default=2019, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    parser.add_argument("--interval", type=float, default=3.0, help="seconds between reports; default %(default)s")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    meter = Meter()
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "chargen")
            server.thread_num = options.threads
            loop.run_every(options.interval, meter.report)
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.thread_init_callback = meter.add_loop
        server.connection_callback = on_connection
        server.write_complete_callback = on_write_complete
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
