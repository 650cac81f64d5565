"""libevent's benchmark of event dispatch, as muduo runs it: tokens that hop through pairs of sockets.

Of all pairs each is watched for reading; some are given a byte at first. Whoever reads a byte writes one to the next
pair, until the writes are used up; then what is under way is read. A round is measured from its first byte on, and
repeated on the same pairs. What it shows is the price of an event: poll, dispatch, callback.

The raw limit is ``c/events_epoll.c``, the same in C; a callback there is a function pointer.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess

from programs import command, loops
from suite.build import BuildError, c_program

RAW = "raw C epoll"


class Ring:
    """The pairs, and the counts of the round in progress."""

    def __init__(self, loop: loops.Loop, pairs: int, active: int, writes: int) -> None:
        self._loop = loop
        self._active = active
        self._writes_a_round = writes
        self._ends = [socket.socketpair() for _ in range(pairs)]
        for number, (reader, writer) in enumerate(self._ends):
            reader.setblocking(False)
            following = self._ends[(number + 1) % pairs][1].fileno()
            loop.watch(reader.fileno(), Token(self, reader.fileno(), following).handle_readable)
            writer.setblocking(False)
        self.writes_left = self.fired = self.read = 0

    def run_round(self) -> None:
        """Let the tokens hop until all writes are used and all bytes read."""
        self.writes_left, self.fired, self.read = self._writes_a_round, self._active, 0
        step = len(self._ends) // self._active
        for number in range(self._active):
            self._ends[number * step][1].send(b"m")
        self._loop.run()
        all_bytes = self._active + self._writes_a_round
        command.check(self.read == all_bytes, f"{self.read} of {all_bytes} bytes were read")

    def end_round(self) -> None:
        """Stop the loop; a token has seen that nothing is under way."""
        self._loop.stop()

    def close(self) -> None:
        """Close every socket."""
        for reader, writer in self._ends:
            self._loop.unwatch(reader.fileno())
            reader.close()
            writer.close()


class Token:
    """What happens when a pair becomes readable."""

    def __init__(self, ring: Ring, fd: int, following: int) -> None:
        self._ring = ring
        self._fd = fd
        self._following = following

    def handle_readable(self, receive_time: object = None) -> None:
        """Read a byte, write one to the following pair."""
        ring = self._ring
        ring.read += len(os.read(self._fd, 1))
        if ring.writes_left > 0:
            os.write(self._following, b"m")
            ring.writes_left -= 1
            ring.fired += 1
        if ring.fired == ring.read:
            ring.end_round()


def in_c(options: argparse.Namespace) -> dict[str, float]:
    """Return the figures of the C program."""
    try:
        program = c_program("events_epoll")
    except BuildError as e:
        raise loops.PeerAbsentError(str(e)) from None
    numbers = (options.pairs, options.active, options.writes, options.rounds)
    done = subprocess.run([program, *map(str, numbers)], check=True, capture_output=True, text=True, timeout=60)
    measured = json.loads(done.stdout)
    return command.rates("events", measured["events"], (measured["seconds"], measured["cpu_s"]))


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Run one round to warm up, and then the measured ones."""
    if options.peer == RAW:
        return in_c(options)
    loop = loops.make(options.peer)
    ring = Ring(loop, options.pairs, options.active, options.writes)
    try:
        ring.run_round()
        stopwatch = command.Stopwatch()
        for _ in range(options.rounds):
            ring.run_round()
        took = stopwatch.stop()
    finally:
        ring.close()
        loop.close()
    return command.rates("events", options.rounds * (options.active + options.writes), took)


if __name__ == "__main__":
    parser = command.parser(__doc__, (*loops.PEERS, RAW))
    parser.add_argument("--pairs", type=command.count, default=100, metavar="N", help="of sockets (%(default)s)")
    parser.add_argument("--active", type=command.count, default=10, metavar="N", help="tokens (%(default)s)")
    parser.add_argument("--writes", type=command.count, default=10_000, metavar="N", help="a round (%(default)s)")
    parser.add_argument("--rounds", type=command.count, default=10, metavar="N", help="measured (%(default)s)")
    given = parser.parse_args()
    if given.active > given.pairs:
        parser.error(f"--active must be at most --pairs, {given.pairs}, got {given.active}")
    command.main(given, measure)
