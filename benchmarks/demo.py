"""What ``make demo`` shows: one echo service under load, on pymuduo with two loops and on asyncio.

Three hundred connections send 64-byte messages, each waiting for its echo; every byte of every reply is checked.
The two servers take turns, twice each, and the better turn of each is shown.
"""

from __future__ import annotations

import sys
from typing import Any

import pymuduo
from suite.programs import Peer, Server, load

CONNECTIONS = 300
TURNS, SECONDS = 2, 1.5

PEERS = (
    Peer("pymuduo, 2 loops", "peers/pymuduo_echo.py", ("--threads", "2")),
    Peer("asyncio, 1 loop", "peers/asyncio_echo.py"),
)


def one_turn(peer: Peer) -> dict[str, Any]:
    """Drive a server once, unpinned as a user would run it."""
    with Server(peer, cpu=None) as server:
        result = load(server.port, SECONDS, ("--connections", str(CONNECTIONS)), cpu=None)
        printed = server.end()
    per_loop = printed.partition("connections per loop:")[2].split()
    result["per_loop"] = " + ".join(per_loop) if per_loop else str(CONNECTIONS)
    return result


def main() -> None:
    """Measure, and print the table."""
    kind = "compiled" if pymuduo.COMPILED else "pure Python"
    print(f"pymuduo {pymuduo.__version__} ({kind}), Python {sys.version.split()[0]}: echo of 64 B messages, ", end="")
    print(f"{CONNECTIONS} connections, {TURNS} turns of {SECONDS} s each", flush=True)
    best: dict[str, dict[str, Any]] = {}
    try:
        for _ in range(TURNS):
            for peer in PEERS:
                result = one_turn(peer)
                if peer.name not in best or result["messages_per_s"] > best[peer.name]["messages_per_s"]:
                    best[peer.name] = result
    except RuntimeError as e:
        sys.exit(f"the demo failed: {e}")
    print(f"\n{'server':<18}{'messages/s':>12}{'MiB/s':>8}", end="")
    print(f"{'p50 µs':>9}{'p99 µs':>9}{'p99.9 µs':>10}  connections per loop")
    for name, r in best.items():
        latency = r["latency_us"]
        print(
            f"{name:<18}{r['messages_per_s']:>12,.0f}{r['mib_per_s']:>8.1f}{latency['p50']:>9,.0f}"
            f"{latency['p99']:>9,.0f}{latency['p99.9']:>10,.0f}  {r['per_loop']}"
        )
    if not hasattr(sys, "_is_gil_enabled") or sys._is_gil_enabled():
        print(
            "\nThis interpreter has the global lock: two loops share it, so they isolate connections from one\n"
            "another but add no throughput. On a free-threaded build each loop has a processor to itself."
        )


if __name__ == "__main__":
    main()
