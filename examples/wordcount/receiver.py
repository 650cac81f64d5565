r"""Counts words, one share of them: takes counts from several senders, adds them up, and writes the totals.

What it teaches: the end of a job that is spread over processes. Each sender connects, sends lines ``word\tcount``,
and closes; when as many have closed as were expected, the totals are complete. A sender that breaks off in the middle
would make them wrong without a sign, so each says ``\end`` last, and one that has not said it fails the whole job.

    python receiver.py --out totals.txt        and elsewhere        python hasher.py words.txt --to 127.0.0.1:2020
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from pathlib import Path

from pymuduo import EventLoop, InetAddress, TcpConnection, TcpServer, Timestamp
from pymuduo.codec import LineCodec

_END = b"\\end"  # no word: a word has no blanks, and a line of counts has a tab
_MAX_LINE_BYTES = 4096


class Receiver:
    """Adds up what the senders send; everything happens in one loop."""

    def __init__(self, loop: EventLoop, sender_count: int) -> None:
        self.totals: Counter[bytes] = Counter()
        self.failure: str | None = None
        self._loop = loop
        self.awaited = sender_count

    def on_connection(self, connection: TcpConnection) -> None:
        """Count the senders that have finished."""
        if connection.connected:
            logging.info("%s begins", connection.peer_address)
        elif connection.context == _END:
            logging.info("%s has finished", connection.peer_address)
            self.awaited -= 1
            if self.awaited == 0:
                self._loop.quit()
        else:
            self._fail(f"{connection.peer_address} broke off: {connection.error or 'closed'}")

    def on_lines(self, connection: TcpConnection, lines: list[bytes], receive_time: Timestamp) -> None:
        """Add the counts of a whole read."""
        for line in lines:
            word, tab, count = line.rpartition(b"\t")
            if tab and count.isdigit() and connection.context is None:
                self.totals[word] += int(count)
            elif line == _END:
                connection.context = _END
            else:
                self._fail(f"{connection.peer_address} sent {line[:80]!r}")
                return

    def _fail(self, why: str) -> None:
        self.failure = self.failure or why
        self._loop.quit()


def check_writable(path: Path) -> None:
    """Raise OSError now, and not when the work is done, if no file can be written there; leaves none behind."""
    is_new = not path.exists()
    path.open("ab").close()
    if is_new:
        path.unlink()


def main() -> None:
    """Receive until all senders have finished, Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="adds up the word counts of several senders")
    parser.add_argument("--port", type=int, default=2020, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--senders", type=int, default=1, help="how many will come; default %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="the file for the totals, a word and its count a line")
    options = parser.parse_args()
    if options.senders < 1:
        parser.error(f"--senders must be 1 at least, got {options.senders}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        receiver = Receiver(loop, options.senders)
        codec = LineCodec(batch_callback=receiver.on_lines, delimiter=b"\r\n", max_bytes=_MAX_LINE_BYTES)
        try:
            check_writable(options.out)
            server = TcpServer(loop, InetAddress.any(options.port), "receiver")
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.connection_callback = receiver.on_connection
        server.message_callback = codec.on_message
        server.start()
        loop.run()
    if receiver.failure is not None or receiver.awaited > 0:
        sys.exit(f"no totals: {receiver.failure or 'ended before all senders had finished'}")
    try:
        with options.out.open("wb") as out:
            out.writelines(b"%b\t%d\n" % pair for pair in sorted(receiver.totals.items()))
    except OSError as e:
        sys.exit(f"no totals: {e}")
    logging.info("%d words, %d different", receiver.totals.total(), len(receiver.totals))


if __name__ == "__main__":
    main()
