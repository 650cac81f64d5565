"""The other end of a connection: reads *N* bytes as fast as it can, and then answers with what it has seen.

    python -m programs.drain --port PORT --bytes N

The answer is 16 bytes: how many bytes came, and their CRC-32 (two big-endian 64-bit numbers), sent at once when the
last of them is there.
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
import zlib

ANSWER = struct.Struct("!QQ")
_READ_SIZE = 1 << 20
_PATIENCE_S = 60


def main() -> None:
    """Connect, read, answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--bytes", type=int, required=True, metavar="N", help="how many to read")
    parser.add_argument("--cpu", type=int, metavar="N", help="run on processor N only")
    options = parser.parse_args()
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    area = memoryview(bytearray(_READ_SIZE))
    received = crc = 0
    with socket.create_connection(("127.0.0.1", options.port), _PATIENCE_S) as connection:
        while received < options.bytes and (size := connection.recv_into(area)):
            received += size
            crc = zlib.crc32(area[:size], crc)
        connection.sendall(ANSWER.pack(received, crc))


if __name__ == "__main__":
    main()
