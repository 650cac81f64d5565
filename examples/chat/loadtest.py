"""Load test for any chat server: many clients talk, and every one of them checks what it has heard.

What it teaches: a measurement that proves what it counts, and does not measure itself. Every message says who it is
from, its number, and when it was sent. So each client knows of each speaker which number must come next, and finds one
that is missing, doubled, out of order or spoilt; figures are printed only for a conversation that was right. But to
look at a message takes longer than to deliver it. So while the clock runs, a client writes down what has come and when,
as it came, and everything is checked afterwards.

Each speaker says its next message when it has heard its own last one; the latency of a delivery counts from sending to
the moment at which a client takes it. All are in before the clock starts. When all have heard as much as they should,
there is one word more, which must be the next that comes. The clients share a core, or a few, with each other: beside
the figures stands how much of one core they used, and at 90 % or more it is them that have been measured.

A client belongs to its loop. The news that it has for the test it brings to the main loop; what it wrote down is read
when the loops have ended.

    python server.py --threads 2        and elsewhere        python loadtest.py --clients 100 --messages 100
"""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable

from codec import HEADER_BYTES, MAX_MESSAGE_BYTES
from pymuduo import EventLoop, EventLoopThreadPool, TcpClient, TcpConnection, Timestamp
from pymuduo.codec import LengthHeaderCodec

_CONNECTING_AT_ONCE = 32
_MAX_NOTES_BYTES = 2 << 30  # of memory for what the clients write down
_NOTE_BYTES = 100  # beside the text: the speaker's name, and what a bytes object takes
_PERCENTILES = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))


class LoadClient:
    """Says its messages if it is one of the speakers, and writes down what it hears. Confined to its loop."""

    def __init__(self, test: LoadTest, number: int, loop: EventLoop) -> None:
        self.loop = loop
        self.number = number
        self.notes: list[tuple[int, list[bytes]]] = []  # at what time came what
        self.noted_count = 0
        self.said: list[bytes] = []
        self._test = test
        self._greeting = b"%b/%d/" % (test.greeting, number)
        self._own = b"%b/%d/" % (test.mark, number)
        self._is_in = False
        self._codec = LengthHeaderCodec(
            batch_callback=self._on_messages, header_bytes=HEADER_BYTES, max_bytes=MAX_MESSAGE_BYTES
        )
        self._tcp = TcpClient(loop, (test.host, test.port), f"load-{number}")
        self._tcp.connection_callback = self._on_connection
        self._tcp.message_callback = self._codec.on_message
        self._tcp.connect_failed_callback = lambda client, error: test.bring(test.fail, f"can't connect: {error}")

    def connect(self) -> None:
        """Come to the chat; from any thread."""
        self._tcp.connect()

    def speak(self) -> None:
        """Say the next message."""
        if (connection := self._tcp.connection) is not None:
            text = b"%b%d/%d/" % (self._own, len(self.said) + 1, time.monotonic_ns())
            self.said.append(text.ljust(self._test.message_bytes, b"."))
            self._codec.send(connection, self.said[-1])

    def check(self, said: list[list[bytes]], took: Counter[int]) -> str:
        """Return what is wrong with what was heard, if anything; count how many deliveries took so many microseconds.

        Takes what each speaker has said. From any thread, when the loops have ended.
        """
        due = [1] * len(said)  # of each speaker, the number that comes next
        for when, messages in self.notes:
            for message in messages:
                try:
                    speaker, number, sent = map(int, message.rpartition(self._test.mark)[2].split(b"/")[1:4])
                    expected = due[speaker]
                    was_said = message.endswith(said[speaker][number - 1])
                except (ValueError, IndexError):
                    was_said = False
                if not was_said:
                    return f"client {self.number} heard {message[:100]!r}, which nobody has said"
                if number != expected:
                    return f"client {self.number} heard number {number} of {speaker}, when {expected} was due"
                due[speaker] += 1
                if number <= self._test.messages:
                    took[(when - sent) // 1000] += 1
        return ""

    def _on_connection(self, connection: TcpConnection) -> None:
        if connection.connected:
            self._codec.send(connection, self._greeting)  # who hears itself is in, and hears all that follows
        else:
            self._test.bring(self._test.fail, f"client {self.number} was disconnected")

    def _on_messages(self, connection: TcpConnection, messages: list[bytes], receive_time: Timestamp) -> None:
        now, test = time.monotonic_ns(), self._test
        if not self._is_in:
            if any(self._greeting in message for message in messages):
                self._is_in = True
                test.bring(test.note_arrival)
            return
        ours = [message for message in messages if test.mark in message]
        if not ours:
            return
        self.notes.append((now, ours))
        before, self.noted_count = self.noted_count, self.noted_count + len(ours)
        if before < test.due <= self.noted_count:
            test.bring(test.note_all_heard)
        if before <= test.due < self.noted_count:
            test.bring(test.note_end)
        if 0 < len(self.said) < test.messages and any(self._own in message for message in ours):
            self.speak()


class LoadTest:
    """Lets the clients come, talk, and end. Confined to the main loop, but for what never changes and ``bring``."""

    def __init__(self, loop: EventLoop, options: argparse.Namespace) -> None:
        self.host: str = options.host
        self.port: int = options.port
        self.messages: int = options.messages
        self.message_bytes: int = options.bytes
        self.speakers: int = min(options.speakers or options.clients, options.clients)
        self.due = self.speakers * self.messages  # for each client
        self.greeting, self.mark = (secrets.token_hex(4).encode() for _ in range(2))  # what others say does not count
        self.failure = ""
        self._loop = loop
        self._patience_s: float = options.patience
        self._clients: list[LoadClient] = []
        self._coming = self._arrived = self._complete = self._ended = 0
        self._began = self._seconds = self._cpu_began = self._cpu_seconds = 0.0
        self._last_news: tuple[int, ...] = ()

    def start(self, pool: EventLoopThreadPool, count: int) -> None:
        """Deal the clients out to the loops, and let the first ones come."""
        self._clients = [LoadClient(self, number, pool.next_loop()) for number in range(count)]
        self._began = time.monotonic()
        for _ in range(min(_CONNECTING_AT_ONCE, count)):
            self._connect_next()
        self._loop.run_every(self._patience_s, self._look_for_news)

    def bring(self, note: Callable[..., object], *args: object) -> None:
        """Bring news to the main loop; from any thread."""
        self._loop.post(note, args)

    def note_arrival(self) -> None:
        """One more is in. When all are, the speakers begin."""
        self._arrived += 1
        if self._coming < len(self._clients):
            self._connect_next()
        elif self._arrived == len(self._clients):
            print(f"{self._arrived} clients are in after {time.monotonic() - self._began:.3f} s", flush=True)
            self._began, self._cpu_began = time.monotonic(), time.process_time()
            for speaker in self._clients[: self.speakers]:
                speaker.loop.run_in_loop(speaker.speak)

    def note_all_heard(self) -> None:
        """One more has heard everything. When all have, the first one says the last word."""
        self._complete += 1
        if self._complete == len(self._clients):
            self._seconds = time.monotonic() - self._began
            self._cpu_seconds = time.process_time() - self._cpu_began
            self._clients[0].loop.run_in_loop(self._clients[0].speak)

    def note_end(self) -> None:
        """One more has heard the last word."""
        self._ended += 1
        if self._ended == len(self._clients):
            self._loop.quit()

    def fail(self, reason: str) -> None:
        """Give up; the first reason is the one that counts."""
        self.failure = self.failure or reason
        self._loop.quit()

    def report(self) -> str:
        """Check everything and print what has been measured; return what was wrong. When the loops have ended."""
        took: Counter[int] = Counter()
        said = [speaker.said for speaker in self._clients[: self.speakers]]
        for client in self._clients:
            if wrong := client.check(said, took):
                return f"{self.failure}; {wrong}" if self.failure else wrong
        if self.failure or self._ended < len(self._clients):
            print(f"broken off after {took.total()} deliveries, in order so far", flush=True)
            return self.failure
        rate = took.total() / self._seconds
        print(
            f"{took.total()} deliveries in {self._seconds:.3f} s, {rate:.0f} a second,"
            " none lost or doubled, each speaker's in order"
        )
        print(f"latency in ms: {', '.join(f'{name} {percentile(took, p) / 1e3:.3f}' for name, p in _PERCENTILES)}")
        print(f"the clients used {self._cpu_seconds / self._seconds:.0%} of a core", flush=True)
        return ""

    def _connect_next(self) -> None:
        self._clients[self._coming].connect()
        self._coming += 1

    def _look_for_news(self) -> None:
        heard = sum(client.noted_count for client in self._clients)  # of other threads, but a hint will do
        news = (heard, self._arrived, self._ended)
        if news == self._last_news:
            due = len(self._clients) * self.due
            self.fail(f"nothing more comes: {self._arrived} clients are in, {heard} of {due} deliveries were made")
        self._last_news = news


def percentile(counts: Counter[int], part: float) -> int:
    """Return the value that this part of all counted values does not exceed (nearest rank)."""
    missing = counts.total() * part
    for value in sorted(counts):
        missing -= counts[value]
        if missing <= 0:
            break
    return value


def main() -> None:
    """Test once, or until Ctrl-C or SIGTERM; the exit code is 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description="load test for a chat server, which checks every delivery")
    parser.add_argument("--host", default="127.0.0.1", help="default %(default)s")
    parser.add_argument("--port", type=int, default=3399, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="loops; 0, the default: the main loop does it all")
    parser.add_argument("--clients", type=int, default=100, help="default %(default)s")
    parser.add_argument("--speakers", type=int, default=0, help="how many of them talk; 0, the default: all")
    parser.add_argument("--messages", type=int, default=50, help="that each speaker says; default %(default)s")
    parser.add_argument("--bytes", type=int, default=64, help="how long a message is at least; default %(default)s")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds without any news; default %(default)s")
    options = parser.parse_args()
    if options.clients < 1 or options.speakers < 0 or options.messages < 1 or not 0 <= options.bytes <= 60_000:
        parser.error("it takes at least one client and one message, and a message has at most 60,000 bytes")
    if not options.patience > 0:
        parser.error("it takes some patience")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        test = LoadTest(loop, options)
        if test.due * options.clients * (options.bytes + _NOTE_BYTES) > _MAX_NOTES_BYTES:
            parser.error(f"{test.due * options.clients} deliveries are more than there is memory for")
        try:
            pool = EventLoopThreadPool(loop, "load", options.threads)
            pool.start()
            test.start(pool, options.clients)
        except ValueError as e:
            parser.error(str(e))
        loop.run()
        failure = test.failure  # what ends from here on, we end
        pool.stop()
    test.failure = failure
    if wrong := test.report():
        sys.exit(wrong)


if __name__ == "__main__":
    main()
