"""Compares one I/O loop with two and more, under a handler that keeps its processor busy.

Each message, 1 KiB, has its checksum computed in plain Python before it is sent back: some tens of microseconds, beside
which the network is little. With the GIL the loops take turns at that, and more of them gain nothing; without it they
should go as fast as there are processors for them. Rounds are interleaved, each turn a fresh process; ratios are taken
round by round. The load generator checks every byte; it runs where the kernel lets it, and needs little.

    python benchmarks/loops_bench.py                      one loop and two, five rounds of two seconds
    python benchmarks/loops_bench.py --loops 1 2 4 --rounds 9
"""

from __future__ import annotations

import argparse
import sys
import time

from suite import report
from suite.build import BuildError
from suite.load import Figures, LoadError, drive
from suite.servers import Peer, PeerAbsentError, PeerFailedError, Server

_SIZE = 1024
_WARMUP_S = 0.3


def take_turn(loops: int, connections: int, duration_s: float) -> Figures:
    """Measure a fresh server with so many I/O loops.

    Raises:
        PeerAbsentError, PeerFailedError, LoadError, BuildError: see there.
    """
    options = ("--mode", "checksum", "--threads", str(loops))
    peer = Peer(_name(loops), "pymuduo_echo.py", {"checksum": options}, module="pymuduo")
    with Server(peer, "checksum") as server:
        load = ("--size", str(_SIZE), "--connections", str(connections))
        figures = drive(server.port, load, duration_s=duration_s, warmup_s=_WARMUP_S, pid=server.pid)
        server.stop()
    return figures


def _name(loops: int) -> str:
    return "one loop" if loops == 1 else f"{loops} loops"


def table(turns: dict[int, list[Figures]]) -> str:
    """Return the figures as Markdown; ratios are to the first row."""
    first = _name(next(iter(turns)))
    rows = [["I/O loops", "messages/s (min–max)", f"× {first}", "CPU µs/message", "busy processors", "p99 µs"]]
    rows.append(["---"] * len(rows[0]))
    base = [figures.messages_per_s for figures in next(iter(turns.values()))]
    for loops, taken in turns.items():
        rates = [figures.messages_per_s for figures in taken]
        ratios = [rate / of_one for rate, of_one in zip(rates, base, strict=True)]
        row = [_name(loops), report.spread(rates, "{:,.0f}"), report.spread(ratios, "{:.2f}")]
        row += [report.spread([figures.cpu_us_per_message or 0.0 for figures in taken], "{:.1f}")]
        row += [report.spread([figures.server_busy or 0.0 for figures in taken], "{:.2f}")]
        row += [report.spread([figures.latency_us["p99"] for figures in taken], "{:,.0f}")]
        rows.append(row)
    return report.markdown(rows)


def main() -> None:
    """Measure, and print the table; any failure ends it with a message and status 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loops", type=int, nargs="+", default=[1, 2], help="I/O loops of each server (1 2)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--duration", type=float, default=2.0, metavar="S", help="of a turn (%(default)s)")
    parser.add_argument("--connections", type=int, default=32, help="(%(default)s)")
    options = parser.parse_args()
    if min(options.rounds, options.connections, *options.loops) < 1 or not 0 < options.duration <= 60:
        parser.error("--loops, --rounds and --connections must be 1 at least, --duration above 0 and 60 at most")
    facts = report.machine()
    turns: dict[int, list[Figures]] = {loops: [] for loops in options.loops}
    try:
        for _ in range(options.rounds):
            for loops, taken in turns.items():
                taken.append(take_turn(loops, options.connections, options.duration))
    except (PeerAbsentError, PeerFailedError, LoadError, BuildError) as e:
        sys.exit(f"loops_bench: failed: {e}")
    print(
        f"Measured on {time.strftime('%Y-%m-%d')} with `loops_bench.py`: Python {facts['python']}, {facts['cpu']}, "
        f"pymuduo {facts['pymuduo']}; {options.connections} connections, {report.rounds_of(options.rounds)} of "
        f"{options.duration:g} s.\n"
    )
    print(table(turns))


if __name__ == "__main__":
    main()
