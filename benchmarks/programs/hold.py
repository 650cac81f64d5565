"""Opens connections, has one message echoed on each, and holds them until its input ends.

    python -m programs.hold --port PORT --connections N

Prints ``holding N`` when the last echo is back.
"""

from __future__ import annotations

import argparse
import resource
import socket
import sys

_PATIENCE_S = 30.0
_MESSAGE = bytes(range(64))


def open_one(port: int) -> socket.socket:
    """Return a connection on which the message has come back."""
    connection = socket.create_connection(("127.0.0.1", port), _PATIENCE_S)
    connection.sendall(_MESSAGE)
    reply = connection.recv(len(_MESSAGE), socket.MSG_WAITALL)
    if reply != _MESSAGE:
        sys.exit(f"hold: {len(_MESSAGE)} B came back as {reply!r}")
    return connection


def main() -> None:
    """Open, tell, hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True, metavar="N")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held = [open_one(options.port) for _ in range(options.connections)]
    print(f"holding {len(held)}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
