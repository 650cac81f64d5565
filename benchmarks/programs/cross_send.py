"""Sends from another thread to one connection, a second.

pymuduo: ``connection.send``, which may be called from any thread; asyncio and uvloop: the same with
``loop.call_soon_threadsafe(transport.write, …)``. The time is that from the first send until the other end, a process
of its own, has read the last byte and said so; it tells the CRC of what it has read, which must be the right one.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from typing import cast

from programs import command, loops
from programs.drain import ANSWER

_MESSAGES = 256  # different ones, sent again and again


class Sending:
    """One run: what the thread sends, and when it has arrived."""

    def __init__(self, sends: int, size: int) -> None:
        self.sends = sends
        self.messages = [bytes((i * 7 + k) % 256 for k in range(size)) for i in range(_MESSAGES)]
        self.took: tuple[float, float] | None = None
        self._answer = b""

    def start(self, send: Callable[[bytes], object]) -> None:
        """Send in a thread of its own, by ``send(message)``."""
        threading.Thread(target=self._send_all, args=(send,), daemon=True).start()

    def take_answer(self, data: bytes) -> bool:
        """Take bytes of the answer; return whether it is complete, and stop the time then."""
        self._answer += data
        if len(self._answer) == ANSWER.size:
            self.took = self._stopwatch.stop()
        return self.took is not None

    def check(self) -> None:
        """End the program unless every byte has arrived as it was sent."""
        crc = 0
        for number in range(self.sends):
            crc = zlib.crc32(self.messages[number % _MESSAGES], crc)
        right = (self.sends * len(self.messages[0]), crc)
        arrived = ANSWER.unpack(self._answer) if self.took is not None else None
        command.check(arrived == right, f"bytes and CRC sent: {right}; arrived: {arrived}")

    def _send_all(self, send: Callable[[bytes], object]) -> None:
        messages, count = self.messages, _MESSAGES
        self._stopwatch = command.Stopwatch()
        for number in range(self.sends):
            send(messages[number % count])


def on_pymuduo(sending: Sending, drain: Callable[[int], None]) -> None:
    """Serve the one connection with pymuduo, until the answer has come."""
    loops.require("pymuduo")
    from pymuduo import Buffer, EventLoop, InetAddress, TcpConnection, TcpServer, Timestamp

    def on_connection(connection: TcpConnection) -> None:
        if connection.connected:
            sending.start(connection.send)
        else:
            loop.quit()

    def on_message(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        if sending.take_answer(buffer.retrieve_all_as_bytes()):
            loop.quit()

    with EventLoop() as loop, TcpServer(loop, InetAddress.loopback(0), "cross_send") as server:
        server.connection_callback = on_connection
        server.message_callback = on_message
        server.start()
        drain(server.address.port)
        loop.run()


def on_asyncio(peer: str, sending: Sending, drain: Callable[[int], None]) -> None:
    """Serve the one connection with *peer*'s loop, until the answer has come."""
    loop = loops.new_asyncio_loop(peer)

    class Sender(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            call, write = loop.call_soon_threadsafe, cast(asyncio.Transport, transport).write
            sending.start(lambda data: call(write, data))

        def data_received(self, data: bytes) -> None:
            if sending.take_answer(data):
                loop.stop()

        def connection_lost(self, exc: Exception | None) -> None:
            loop.stop()

    server = loop.run_until_complete(loop.create_server(Sender, "127.0.0.1", 0))
    drain(server.sockets[0].getsockname()[1])
    loop.run_forever()
    server.close()
    loop.close()


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Start the other end, send, check."""
    sending = Sending(options.sends, options.size)
    drains: list[subprocess.Popen[bytes]] = []

    def drain(port: int) -> None:
        asked = ("--port", str(port), "--bytes", str(options.sends * options.size))
        drains.append(subprocess.Popen([sys.executable, "-m", "programs.drain", *asked]))

    try:
        if options.peer == "pymuduo":
            on_pymuduo(sending, drain)
        else:
            on_asyncio(options.peer, sending, drain)
    finally:
        for process in drains:
            process.kill()
            process.wait()
    sending.check()
    assert sending.took is not None
    return command.rates("sends", options.sends, sending.took)


if __name__ == "__main__":
    parser = command.parser(__doc__)
    parser.add_argument("--sends", type=command.count, default=200_000, metavar="N", help="(%(default)s)")
    parser.add_argument("--size", type=command.count, default=64, metavar="BYTES", help="a send (%(default)s)")
    command.main(parser.parse_args(), measure)
