"""Shows pymuduo at work: an echo service on two loops under load, and the same service on asyncio beside it.

Three hundred connections send 64-byte messages, each waiting for its echo before it sends the next; every byte of
every reply is checked. The servers take turns, three times each, and of each the turn with the middle throughput is
shown, all its figures together. Each has served ten connections before, as a server that runs for long has (see
README.md). Nothing is pinned to a processor. Takes about ten seconds.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

from suite import report
from suite.build import BuildError
from suite.load import Figures, LoadError, drive
from suite.servers import Peer, PeerAbsentError, PeerFailedError, Server

CONNECTIONS, BEFORE = 300, 10
TURNS, TURN_S, WARMUP_S = 3, 1.0, 0.2

PEERS = (
    Peer("pymuduo, two loops", "pymuduo_echo.py", {"echo": ("--threads", "2")}, module="pymuduo"),
    Peer("asyncio, one loop", "asyncio_echo.py", {"echo": ()}),
)

WITH_GIL = "This Python has the GIL: two loops take turns, so they buy isolation rather than throughput."
WITHOUT_GIL = "This Python is free-threaded: the two loops run at the same time, if there are processors for them."


@dataclass(frozen=True)
class Turn:
    """What one turn of a server showed."""

    figures: Figures
    connections_per_loop: str


def take_turn(peer: Peer) -> Turn:
    """Start a server, drive it, end it.

    Raises:
        PeerAbsentError, PeerFailedError, LoadError, BuildError: see there.
    """
    with Server(peer, "echo") as server:
        drive(server.port, ("--size", "64", "--connections", str(BEFORE)), duration_s=WARMUP_S, warmup_s=0.0)
        options = ("--size", "64", "--connections", str(CONNECTIONS))
        figures = drive(server.port, options, duration_s=TURN_S, warmup_s=WARMUP_S)
        printed = server.stop()
    return Turn(figures, connections_per_loop(peer, printed))


def connections_per_loop(peer: Peer, printed: str) -> str:
    """Return what the server said of its loops; one that says nothing has a single loop, and so all connections.

    Raises:
        PeerFailedError: the counts do not add up to the connections that were made.
    """
    _, said, counts = printed.partition("connections per loop:")
    if not said:
        return str(CONNECTIONS + BEFORE)
    if sum(map(int, counts.split())) != CONNECTIONS + BEFORE:
        raise PeerFailedError(f"{peer.name} was given {CONNECTIONS + BEFORE} connections, counted {counts.strip()}")
    return " + ".join(counts.split())


def table(turns: dict[str, list[Turn]]) -> str:
    """Return each server's middle turn as an aligned table."""
    rows = [["server", "messages/s", "MiB/s", "p50 µs", "p99 µs", "p99.9 µs", "connections per loop"]]
    for name, taken in turns.items():
        turn = sorted(taken, key=lambda t: t.figures.messages_per_s)[len(taken) // 2]
        figures = turn.figures
        latencies = [f"{figures.latency_us[p]:,.0f}" for p in ("p50", "p99", "p99.9")]
        throughput = [f"{figures.messages_per_s:,.0f}", f"{figures.mib_per_s:.1f}"]
        rows.append([name, *throughput, *latencies, turn.connections_per_loop])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("   ".join(cells))
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table; any failure ends it with a message and status 1."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    facts = report.machine()
    print(f"pymuduo {facts['pymuduo']}; Python {facts['python']}; {facts['cpu']}")
    print(f"echo of 64 B over {CONNECTIONS} connections, {TURNS} turns of {TURN_S:g} s a server\n", flush=True)
    turns: dict[str, list[Turn]] = {peer.name: [] for peer in PEERS}
    try:
        for _ in range(TURNS):
            for peer in PEERS:
                turns[peer.name].append(take_turn(peer))
    except (PeerAbsentError, PeerFailedError, LoadError, BuildError) as e:
        sys.exit(f"demo: failed: {e}")
    print(table(turns))
    print(f"\n{WITH_GIL if report.has_gil() else WITHOUT_GIL}")


if __name__ == "__main__":
    main()
