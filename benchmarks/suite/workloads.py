"""The kinds of load: what the servers are asked to do, and how hard."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """One kind of load. Every peer that gives the service is put under it.

    Attributes:
        title: in words, for the report. service: a key of ``Peer.services``.
        options: of the load generator.
    """

    title: str
    service: str
    options: tuple[str, ...]


WORKLOADS = {
    "echo64": Workload(
        "echo, 64 B, one outstanding message on each of 100 connections",
        "echo",
        ("--size", "64", "--connections", "100"),
    ),
    "echo64x1000": Workload(
        "echo, 64 B, one outstanding message on each of 1,000 connections",
        "echo",
        ("--size", "64", "--connections", "1000"),
    ),
    "echo16k": Workload(
        "echo, 16 KiB, one outstanding message on each of 100 connections",
        "echo",
        ("--size", "16384", "--connections", "100"),
    ),
    "line16": Workload(
        "line echo, 32 B, 16 pipelined lines on each of 100 connections, one send a line",
        "line",
        ("--mode", "line", "--size", "32", "--depth", "16", "--connections", "100"),
    ),
    "connect": Workload(
        "connect, 64 B there and back, close; 50 at a time",
        "echo",
        ("--mode", "connect", "--size", "64", "--connections", "50"),
    ),
    "paced64": Workload(
        "echo, 64 B, 30,000 messages/s on a fixed schedule over 100 connections",
        "echo",
        ("--size", "64", "--connections", "100", "--rate", "30000"),
    ),
}
