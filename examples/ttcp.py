"""TTCP, a measure of throughput as old as TCP: one end sends blocks, the other acknowledges each, and time is taken.

What it teaches: a binary protocol by hand. The bytes are those of muduo's ttcp, so each end can talk to its C++ other:
a header of two 32-bit integers in network order (how many blocks, how long), then each block behind its length, and
each is answered with its length. The sender has one block under way at a time, as the original does.

    python ttcp.py --receive        and elsewhere        python ttcp.py --transmit 127.0.0.1
"""

from __future__ import annotations

import argparse
import logging
import struct
import sys

from pymuduo import Buffer, EventLoop, InetAddress, TcpClient, TcpConnection, TcpServer, Timestamp

_SESSION = struct.Struct(">ii")
_LENGTH = struct.Struct(">i")
_MAX_BLOCK_BYTES = 64 << 20


class Session:
    """The receiving end of one connection: how many blocks of which length are still to come, and since when."""

    def __init__(self) -> None:
        self.begin = Timestamp.now()
        self.block_count = self.block_bytes = self.remaining = 0

    def take(self, connection: TcpConnection, buffer: Buffer) -> bool:
        """Take a header or a block if it is all there; False if not. Raises ValueError for what is neither."""
        if self.block_bytes == 0:
            if len(buffer) < _SESSION.size:
                return False
            self.block_count, self.block_bytes = _SESSION.unpack(buffer.retrieve_as_bytes(_SESSION.size))
            if self.block_count < 1 or not 0 < self.block_bytes <= _MAX_BLOCK_BYTES:
                raise ValueError(f"{self.block_count} blocks of {self.block_bytes} bytes announced")
            self.remaining = self.block_count
            return True
        if len(buffer) < _LENGTH.size + self.block_bytes:
            return False
        length = buffer.read_int32()
        if length != self.block_bytes or self.remaining == 0:
            raise ValueError(f"a block of {length} bytes where {self.remaining} of {self.block_bytes} were to come")
        buffer.retrieve(length)
        connection.send(_LENGTH.pack(length))
        self.remaining -= 1
        return True

    def report(self) -> None:
        """Tell how fast it was."""
        tell(self.block_count - self.remaining, self.block_bytes, Timestamp.now() - self.begin)


def tell(block_count: int, block_bytes: int, seconds: float) -> None:
    """Print one line of result."""
    mebibytes = block_count * block_bytes / (1 << 20)
    print(f"{mebibytes:.3f} MiB in {seconds:.3f} s, {mebibytes / max(seconds, 1e-6):.3f} MiB/s", flush=True)


class Receiver:
    """Serves any number of sessions, each with its own state as its connection's context."""

    def on_connection(self, connection: TcpConnection) -> None:
        """Begin a session, or tell what has come of it."""
        logging.info("%s is %s", connection.peer_address, "up" if connection.connected else "down")
        if connection.connected:
            connection.context = Session()
        elif connection.context.block_bytes > 0:
            connection.context.report()

    def on_message(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        """Take what is complete."""
        try:
            while connection.context.take(connection, buffer):
                pass
        except ValueError as e:
            logging.warning("%s: %s; cut off", connection.peer_address, e)
            buffer.retrieve_all()
            connection.force_close()


class Transmitter:
    """Sends all blocks to one receiver, then ends the loop."""

    def __init__(self, loop: EventLoop, host: str, port: int, block_count: int, block_bytes: int) -> None:
        self.failure: str | None = "interrupted"
        self.client = TcpClient(loop, (host, port), "ttcp")
        self.client.connection_callback = self.on_connection
        self.client.message_callback = self.on_message
        self.client.connect_failed_callback = lambda client, error: self.end(str(error))
        self._loop = loop
        self._block_count = block_count
        self._block_bytes = block_bytes
        self._acknowledged = 0
        self._block = _LENGTH.pack(block_bytes) + (b"0123456789ABCDEF" * (block_bytes // 16 + 1))[:block_bytes]
        self._begin = Timestamp.now()

    def on_connection(self, connection: TcpConnection) -> None:
        """Send the header and the first block."""
        if connection.connected:
            self._begin = Timestamp.now()
            connection.send(_SESSION.pack(self._block_count, self._block_bytes))
            connection.send(self._block)
        elif self._acknowledged < self._block_count:
            self.end(f"broken off: {connection.error or 'closed'}")
        else:
            self.end(None)

    def on_message(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        """Send the next block when one is acknowledged."""
        while len(buffer) >= _LENGTH.size:
            length = buffer.read_int32()
            if length != self._block_bytes or self._acknowledged == self._block_count:
                logging.error("an answer of %d bytes, where %d were sent", length, self._block_bytes)
                connection.force_close()
                return
            self._acknowledged += 1
            if self._acknowledged < self._block_count:
                connection.send(self._block)
            else:
                tell(self._block_count, self._block_bytes, Timestamp.now() - self._begin)
                connection.shutdown()

    def end(self, failure: str | None) -> None:
        """Leave the loop."""
        self.failure = failure
        self._loop.quit()


def receive(loop: EventLoop, port: int, threads: int) -> None:
    """Serve whoever transmits."""
    receiver = Receiver()
    server = TcpServer(loop, InetAddress.any(port), "ttcp")
    server.thread_num = threads
    server.connection_callback = receiver.on_connection
    server.message_callback = receiver.on_message
    server.start()


def main() -> None:
    """Receive until Ctrl-C or SIGTERM, or transmit once."""
    parser = argparse.ArgumentParser(description="measures throughput; two of these, one at each end")
    role = parser.add_mutually_exclusive_group(required=True)
    role.add_argument("--receive", action="store_true", help="be the end that takes blocks")
    role.add_argument("--transmit", metavar="HOST", help="be the end that sends blocks, to this machine")
    parser.add_argument("--port", type=int, default=5001, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="the receiver's I/O loops; default %(default)s")
    parser.add_argument("--length", type=int, default=65536, help="bytes in a block; default %(default)s")
    parser.add_argument("--number", type=int, default=8192, help="blocks; default %(default)s")
    options = parser.parse_args()
    if options.number < 1 or not 0 < options.length <= _MAX_BLOCK_BYTES:
        parser.error(f"one block or more, of 1 to {_MAX_BLOCK_BYTES} bytes")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            if options.receive:
                receive(loop, options.port, options.threads)
                transmitter = None
            else:
                transmitter = Transmitter(loop, options.transmit, options.port, options.number, options.length)
                transmitter.client.connect()
        except (OSError, ValueError) as e:
            parser.error(str(e))
        loop.run()
        failure = None if transmitter is None else transmitter.failure
    if failure:
        sys.exit(f"ttcp: {failure}")


if __name__ == "__main__":
    main()
