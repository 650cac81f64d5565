"""How long does an event take? A ring of socket pairs, through which some bytes are handed on and on.

What it teaches: a ``Channel``, what the library does with a descriptor of any kind, without the connection around it.
It is the benchmark that libevent made known and muduo has as well: *pairs* are watched, *active* bytes are under way at
a time, and each time one is read the next pair is written to, *writes* times in all. What it costs should depend on
how many events there are, not on how many descriptors are watched.

    python bench.py --pairs 1000 --active 100 --writes 10000
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable

from pymuduo import Channel, EventLoop, Timestamp


class Ring:
    """Socket pairs, each of which hands on to the next what it reads; in one loop."""

    def __init__(self, loop: EventLoop, pair_count: int) -> None:
        self._loop = loop
        self._pairs = [socket.socketpair() for _ in range(pair_count)]
        self._write_fds = [writer.fileno() for _, writer in self._pairs]
        self._channels = []
        self._to_write = self._to_read = 0
        for number, (reader, writer) in enumerate(self._pairs):
            reader.setblocking(False)
            writer.setblocking(False)
            channel = Channel(loop, reader.fileno())
            channel.read_callback = self._reader_of(number, reader.fileno())
            channel.enable_reading()
            self._channels.append(channel)

    def _reader_of(self, number: int, fd: int) -> Callable[[Timestamp], None]:
        next_fd = self._write_fds[(number + 1) % len(self._write_fds)]

        def read(receive_time: Timestamp) -> None:
            os.read(fd, 1)
            self._to_read -= 1
            if self._to_write > 0:
                self._to_write -= 1
                os.write(next_fd, b"m")
            elif self._to_read == 0:
                self._loop.quit()

        return read

    def run(self, active_count: int, write_count: int) -> float | None:
        """Set bytes going, wait until all have been read, and return the seconds it took; None: broken off."""
        self._to_write = write_count
        self._to_read = write_count + active_count
        begin = time.perf_counter()
        for number in range(active_count):
            os.write(self._write_fds[number * len(self._pairs) // active_count], b"m")
        self._loop.run()
        return None if self._to_read else time.perf_counter() - begin

    def close(self) -> None:
        """Let go of all descriptors."""
        for channel in self._channels:
            channel.disable_all()
            channel.remove()
        for pair in self._pairs:
            for end in pair:
                end.close()


def main() -> None:
    """Run some rounds, or until Ctrl-C or SIGTERM, and print the median."""
    parser = argparse.ArgumentParser(description="measures how long the loop takes for an event")
    parser.add_argument("--pairs", type=int, default=100, help="socket pairs watched; default %(default)s")
    parser.add_argument("--active", type=int, default=1, help="bytes under way at a time; default %(default)s")
    parser.add_argument("--writes", type=int, default=10000, help="times that one is handed on; default %(default)s")
    parser.add_argument("--rounds", type=int, default=10, help="default %(default)s")
    options = parser.parse_args()
    if not 0 < options.active <= options.pairs or options.writes < 0 or options.rounds < 1:
        parser.error("at least one byte under way, one pair for each, and one round")
    seconds: list[float] = []
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            ring = Ring(loop, options.pairs)
        except OSError as e:
            parser.error(str(e))
        while len(seconds) < options.rounds and (taken := ring.run(options.active, options.writes)) is not None:
            seconds.append(taken)
        ring.close()
    if not seconds:
        sys.exit("interrupted before the end of the first round")
    event_us = statistics.median(seconds) / (options.writes + options.active) * 1e6
    print(f"{options.pairs} pairs, {options.active} active: {event_us:.2f} us an event")


if __name__ == "__main__":
    main()
