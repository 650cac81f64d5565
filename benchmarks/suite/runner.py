"""Runs every peer of a workload in interleaved rounds: A B C, A B C, and so on.

A machine's speed drifts over minutes; what is compared must be measured within seconds. A fresh process serves each
turn, so that no round inherits the memory of another. A peer that fails once is out, with its reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from suite.load import Figures, LoadError, drive
from suite.servers import Peer, PeerAbsentError, PeerFailedError, Server
from suite.workloads import Workload


@dataclass(frozen=True)
class Pinning:
    """The processors of server and load generator; None: wherever the kernel likes."""

    server: int | None
    load: int | None

    @classmethod
    def best(cls) -> Pinning:
        """Return a processor for each, or no pinning if there is only one."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[0], usable[1]) if len(usable) > 1 else cls(None, None)


@dataclass
class Outcome:
    """One workload's results; ``figures`` has one entry a round for each peer that went through all of them."""

    workload: Workload
    rounds: int
    figures: dict[str, list[Figures]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def run(
    workload: Workload,
    peers: Iterable[Peer],
    *,
    rounds: int,
    duration_s: float,
    warmup_s: float,
    pinning: Pinning,
    progress: Callable[[str], object] = lambda text: None,
) -> Outcome:
    """Measure each of *peers* that gives the workload's service, *rounds* times in turn.

    Raises:
        BuildError: the load generator can't be compiled.
    """
    outcome = Outcome(workload, rounds)
    able = [peer for peer in peers if workload.service in peer.services]
    for number in range(1, rounds + 1):
        for peer in able:
            if peer.name in outcome.absent or peer.name in outcome.failed:
                continue
            progress(f"round {number}/{rounds}: {peer.name}")
            try:
                figures = _turn(peer, workload, duration_s, warmup_s, pinning)
                outcome.figures.setdefault(peer.name, []).append(figures)
            except PeerAbsentError as e:
                outcome.absent[peer.name] = str(e)
            except (PeerFailedError, LoadError) as e:
                outcome.failed[peer.name] = f"round {number}: {e}"
                outcome.figures.pop(peer.name, None)
    return outcome


def _turn(peer: Peer, workload: Workload, duration_s: float, warmup_s: float, pinning: Pinning) -> Figures:
    with Server(peer, workload.service, pinning.server) as server:
        figures = drive(
            server.port,
            workload.options,
            duration_s=duration_s,
            warmup_s=warmup_s,
            cpu=pinning.load,
            pid=server.pid,
        )
        server.stop()
    return figures
