"""Publish on a topic of a hub: one message, or each line of the standard input.

What it teaches: a thread that produces must not run ahead of the network. Sending never waits, so a thread that reads a
big file and sends its lines would fill the memory. This one sends what one read has brought, and reads again when that
has gone to the kernel: the write-complete callback says so.

    python pub.py news hello        or        tail -f log | python pub.py news -
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading

from hub_client import HubClient
from hub_codec import MAX_CONTENT_BYTES, HubCodec, HubMessage
from pymuduo import EventLoop, TcpClient, TcpConnection

_READ_BYTES = 65_536
_PATIENCE_S = 10.0


class Publisher:
    """Publishes a message, or lines, and leaves; ``failure`` tells how it went. The loop's thread, but for lines."""

    def __init__(self, loop: EventLoop, client: HubClient, topic: bytes, content: bytes | None) -> None:
        self.failure: str | None = None
        self._loop = loop
        self._client = client
        self._topic = topic
        self._content = content
        self._has_left = threading.Event()  # everything that was published, or is to be
        if content is None:
            self._has_left.set()
        self._is_done = False
        client.connection_callback = self._on_connection
        client.tcp.connect_failed_callback = self._on_failure
        client.tcp.write_complete_callback = self._on_write_complete

    @property
    def owes(self) -> bool:
        """Whether something was to be published that has not left; from any thread."""
        return not self._has_left.is_set()

    def _on_connection(self, client: HubClient) -> None:
        if not client.connected:
            if self.owes or not self._is_done:
                self._fail("the hub has gone")
            self._has_left.set()  # or a thread would wait for ever
            self._loop.quit()
        elif self._content is None:
            threading.Thread(target=self._publish_lines, daemon=True).start()
        else:
            client.publish(self._topic, self._content)
            self._leave()

    def _on_failure(self, client: TcpClient, error: Exception) -> None:
        self._fail(str(error))
        self._loop.quit()

    def _on_write_complete(self, connection: TcpConnection) -> None:
        self._has_left.set()

    def _leave(self) -> None:
        self._is_done = True
        self._client.stop()
        self._loop.run_after(_PATIENCE_S, self._client.tcp.close)

    def _fail(self, reason: str) -> None:
        self.failure = self.failure or reason

    # --- in a thread of its own, which may wait ---

    def _publish_lines(self) -> None:
        rest = b""
        try:
            while chunk := os.read(sys.stdin.fileno(), _READ_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > MAX_CONTENT_BYTES:
                    raise ValueError(f"a line of more than {MAX_CONTENT_BYTES} bytes")
                self._publish_all(lines)
            if rest:
                self._publish_all([rest])
        except (OSError, ValueError) as e:  # the terminal is gone; or a line is too long
            self._loop.post(self._fail, (str(e),))
        self._loop.post(self._leave, ())  # unlike run_in_loop it does not mind if the program has ended meanwhile

    def _publish_all(self, lines: list[bytes]) -> None:
        if lines:
            self._has_left.clear()
            if self._client.publish_all(self._topic, [line.removesuffix(b"\r") for line in lines]):
                self._has_left.wait()


def main() -> None:
    """Publish until all has left, or Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="publisher: publishes on a topic of a hub")
    parser.add_argument("--host", default="127.0.0.1", help="where the hub is; default %(default)s")
    parser.add_argument("--port", type=int, default=2022, help="default %(default)s")
    parser.add_argument("topic")
    parser.add_argument("content", help="-: each line of the standard input")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    topic, content = os.fsencode(options.topic), os.fsencode(options.content)
    try:
        HubCodec().encode(HubMessage(b"pub", topic, content))
    except ValueError as e:
        parser.error(str(e))
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            client = HubClient(loop, (options.host, options.port), "pub", retry=False)
        except ValueError as e:
            parser.error(str(e))
        publisher = Publisher(loop, client, topic, None if content == b"-" else content)
        client.start()
        loop.run()
        failure = publisher.failure  # what ends from here on, we end
        if failure is None and publisher.owes:
            failure = "interrupted"
    sys.exit(failure)


if __name__ == "__main__":
    main()
