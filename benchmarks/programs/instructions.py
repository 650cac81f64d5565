"""User-space instructions that a server executes for one echo of 64 B, counted by valgrind.

The server runs twice, with few messages and with many; the difference a message is the price of one: what it takes to
start and to end cancels out. One connection, one message at a time, so that a message is one iteration of the loop,
whatever the machine is doing: the figure repeats within a percent and needs no quiet machine.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor

from programs import command, loops
from suite import servers

_PEERS = ("pymuduo", "uvloop", "asyncio", "raw C epoll")
_START_LIMIT_S = 60.0  # everything is some fifty times slower under valgrind
_COLLECTED = re.compile(r"Collected : (\d+)")
_WARMUP = 200  # messages: specialising bytecode and first allocations come before what is counted
_READY = re.compile(r"listening on .*:(\d+)$")


def instructions(peer: servers.Peer, messages: int, size: int) -> int:
    """Return what the server executes from its start to its end, with *messages* echoed in between."""
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    # The order of a set of strings must be the same in every run.
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    with tempfile.TemporaryFile("w+") as errors:
        server = subprocess.Popen(
            [*valgrind, *peer.command("echo")], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        try:
            assert server.stdout is not None
            ready = _READY.match(server.stdout.readline().strip())
            if ready is not None:
                talk(int(ready[1]), messages, size)
            server.terminate()
            server.wait(_START_LIMIT_S)
        finally:
            server.kill()
            server.communicate()
        errors.seek(0)
        said = errors.read()
    counted = _COLLECTED.search(said)
    command.check(ready is not None and counted is not None, f"{peer.name} under valgrind: {said[-500:]}")
    assert counted is not None
    return int(counted[1])


def talk(port: int, messages: int, size: int) -> None:
    """Have *messages* messages echoed, one at a time."""
    with socket.create_connection(("127.0.0.1", port), _START_LIMIT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(_WARMUP + messages):
            message = bytes((number + k) % 256 for k in range(size))
            connection.sendall(message)
            reply = connection.recv(size, socket.MSG_WAITALL)
            command.check(reply == message, f"message {number} came back as {reply!r}")


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Count twice, at the same time: how fast it goes does not matter."""
    if shutil.which("valgrind") is None:
        raise loops.PeerAbsentError("valgrind is not installed")
    peer = next(peer for peer in servers.PEERS if peer.name == options.peer)
    few, many = options.messages // 5, options.messages
    try:
        peer.command("echo")
    except servers.PeerAbsentError as e:
        raise loops.PeerAbsentError(str(e)) from None
    with ThreadPoolExecutor() as threads:
        counts = list(threads.map(lambda messages: instructions(peer, messages, options.size), (few, many)))
    return {"instructions": (counts[1] - counts[0]) / (many - few)}


if __name__ == "__main__":
    parser = command.parser(__doc__, _PEERS)
    parser.add_argument(
        "--messages", type=command.count, default=2500, metavar="N", help="many; few is a fifth (%(default)s)"
    )
    parser.add_argument("--size", type=command.count, default=64, metavar="BYTES", help="a message (%(default)s)")
    given = parser.parse_args()
    if given.messages < 5:
        parser.error(f"--messages must be at least 5, got {given.messages}")
    command.main(given, measure)
