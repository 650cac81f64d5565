"""The kinds of load: what the servers are asked to do, and how hard."""

from __future__ import annotations

from dataclasses import dataclass

from suite.servers import Peer


@dataclass(frozen=True)
class Workload:
    """One kind of load. The main peers that give the service are put under it, or all peers.

    Attributes:
        title: in words, for the report. service: a key of ``Peer.services``.
        options: of the load generator.
        rate_of: the name of another workload: half of uvloop's rate there is the rate here; None: see the options.
        is_for_all: not only main peers take part. is_tls: the load generator speaks TLS.
    """

    title: str
    service: str
    options: tuple[str, ...]
    rate_of: str | None = None
    is_for_all: bool = False
    is_tls: bool = False

    def includes(self, peer: Peer) -> bool:
        """Return whether *peer* takes part."""
        return self.service in peer.services and (self.is_for_all or peer.is_main)


def _echo(size: int, connections: int) -> tuple[str, ...]:
    return ("--size", str(size), "--connections", str(connections))


def _batches(mode: str, depth: int) -> tuple[str, ...]:
    return ("--mode", mode, "--size", "32", "--depth", str(depth), "--connections", "100")


# A puzzle with a single solution, which takes ``peers.sudoku`` between 100 and 300 µs.
_PUZZLE = "400000800600108900050004000020030000790500000300002050000000071000090600004805003"
_SOLUTION = "417369825632158947958724316825437169791586432346912758289643571573291684164875293"

WORKLOADS = {
    "echo64": Workload(
        "echo, 64 B, one outstanding message on each of 100 connections", "echo", _echo(64, 100), is_for_all=True
    ),
    "echo64x1": Workload("echo, 64 B, one outstanding message on one connection", "echo", _echo(64, 1)),
    "echo64x1000": Workload(
        "echo, 64 B, one outstanding message on each of 1,000 connections", "echo", _echo(64, 1000)
    ),
    "echo64x10000": Workload(
        "echo, 64 B, one outstanding message on each of 10,000 connections", "echo", _echo(64, 10000)
    ),
    "echo16k": Workload("echo, 16 KiB, one outstanding message on each of 100 connections", "echo", _echo(16384, 100)),
    "echo1m": Workload("echo, 1 MiB, one outstanding message on each of 10 connections", "echo", _echo(1 << 20, 10)),
    "line16": Workload(
        "line echo, 32 B, 16 pipelined lines on each of 100 connections",
        "line",
        _batches("line", 16),
        is_for_all=True,
    ),
    "line64": Workload("line echo, 32 B, 64 pipelined lines on each of 100 connections", "line", _batches("line", 64)),
    "frame16": Workload(
        "frame echo, 32 B behind a length, 16 pipelined frames on each of 100 connections",
        "frame",
        _batches("frame", 16),
    ),
    "frame64": Workload(
        "frame echo, 32 B behind a length, 64 pipelined frames on each of 100 connections",
        "frame",
        _batches("frame", 64),
    ),
    "broadcast": Workload(
        "broadcast, frames of 64 B to 1,000 connections, one at a time; counted are deliveries",
        "broadcast",
        ("--mode", "broadcast", "--size", "64", "--connections", "1000"),
    ),
    "broadcast16": Workload(
        "broadcast, frames of 64 B to 1,000 connections, 16 at a time; counted are deliveries",
        "broadcast",
        ("--mode", "broadcast", "--size", "64", "--connections", "1000", "--depth", "16"),
    ),
    "connect": Workload(
        "connect, 64 B there and back, close; 50 at a time",
        "echo",
        ("--mode", "connect", "--size", "64", "--connections", "50"),
        is_for_all=True,
    ),
    "tls64": Workload(
        "TLS echo, 64 B, one outstanding message on each of 100 connections",
        "tls-echo",
        _echo(64, 100),
        is_for_all=True,
        is_tls=True,
    ),
    "tls16k": Workload(
        "TLS echo, 16 KiB, one outstanding message on each of 100 connections",
        "tls-echo",
        _echo(16384, 100),
        is_for_all=True,
        is_tls=True,
    ),
    "tlsline16": Workload(
        "TLS line echo, 32 B, 16 pipelined lines on each of 100 connections",
        "tls-line",
        _batches("line", 16),
        is_for_all=True,
        is_tls=True,
    ),
    "tlsconnect": Workload(
        "TLS connect with a full handshake, 64 B there and back, close; 50 at a time",
        "tls-echo",
        ("--mode", "connect", "--size", "64", "--connections", "50"),
        is_for_all=True,
        is_tls=True,
    ),
    "sudoku": Workload(
        "Sudoku, a puzzle a line, solved in Python; one outstanding puzzle on each of 10 connections",
        "sudoku",
        ("--mode", "line", "--request", _PUZZLE, "--reply", _SOLUTION, "--connections", "10"),
    ),
    "paced64": Workload(
        "echo, 64 B, on a fixed schedule over 100 connections, half of uvloop's rate",
        "echo",
        _echo(64, 100),
        rate_of="echo64",
    ),
}
