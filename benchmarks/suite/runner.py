"""Runs every peer of a workload in interleaved rounds: A B C, A B C, and so on.

A machine's speed drifts over minutes; what is compared must be measured within seconds. A fresh process serves each
turn, so that no round inherits the memory of another. A peer that fails once is out, with its reason.
"""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from suite.build import BuildError, c_program, certificate
from suite.load import Figures, LoadError, drive
from suite.servers import Peer, PeerAbsentError, PeerFailedError, Server
from suite.workloads import Workload

# Before a turn is measured, a few connections come and go. Where a peer asks for 256 KiB a read (asyncio; uvloop in
# TLS), glibc maps and unmaps them for every message until the first large block has been given back: three times the
# price, and only for as long as no connection has ended yet.
_REHEARSAL, _REHEARSAL_S = ("--connections", "10"), 0.05
_RATE_PEER = "uvloop"  # half of its rate is the rate of a workload that is paced by another


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

    def median_rate(self, peer: str) -> float:
        """Return the median of a peer's messages a second."""
        return statistics.median(figures.messages_per_s for figures in self.figures[peer])


class Turns:
    """Deals the time that is left to the turns that are left.

    What a turn takes besides its measured seconds (the server's start, the connections) is learnt on the way.

    Args:
        count: how many turns there will be. budget_s: for all of them; None: each measures *duration_s*.
    """

    _OVERHEAD_S = 0.45  # until it is known
    _SHORTEST_S, _LONGEST_S = 0.2, 2.0  # measured

    def __init__(self, count: int, *, warmup_s: float, duration_s: float | None, budget_s: float | None = None) -> None:
        self.warmup_s = warmup_s
        self._duration_s = duration_s
        self._ends = None if budget_s is None else time.monotonic() + budget_s
        self._left = count
        self._taken = 0
        self._overheads_s = 0.0

    def duration_s(self) -> float:
        """Return how long the turns of the next workload measure."""
        if self._duration_s is not None:
            return self._duration_s
        if self._ends is None:
            return self._LONGEST_S
        overhead_s = self._overheads_s / self._taken if self._taken else self._OVERHEAD_S
        share_s = (self._ends - time.monotonic()) / max(self._left, 1)
        return round(min(max(share_s - overhead_s - self.warmup_s, self._SHORTEST_S), self._LONGEST_S), 2)

    def note(self, planned: int, outcome: Outcome, taken_s: float, duration_s: float) -> None:
        """Take note that *planned* turns are over; those of *outcome* took *taken_s* seconds."""
        measured = sum(len(rounds) for rounds in outcome.figures.values())
        self._left -= planned
        self._taken += measured
        self._overheads_s += taken_s - measured * (duration_s + self.warmup_s)


def able(workload: Workload, peers: Iterable[Peer]) -> list[Peer]:
    """Return those of *peers* that take part in *workload*."""
    return [peer for peer in peers if workload.includes(peer)]


def paced(workload: Workload, outcomes: Mapping[str, Outcome]) -> Workload:
    """Return *workload* with the rate that the outcome of another gives it, if it asks for that.

    Raises:
        LookupError: nobody was measured under that other workload.
    """
    if workload.rate_of is None:
        return workload
    base = outcomes.get(workload.rate_of)
    if base is None or not base.figures:
        raise LookupError(f"its rate is half of uvloop's in {workload.rate_of}, where nobody was measured")
    # Without uvloop any rate will do that all can follow.
    peer = _RATE_PEER if _RATE_PEER in base.figures else min(base.figures, key=base.median_rate)
    rate = int(base.median_rate(peer) / 2)
    return replace(workload, title=f"{workload.title}: {rate:,}/s", options=(*workload.options, "--rate", str(rate)))


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
    """Measure each of *peers* that takes part in the workload, *rounds* times in turn.

    Raises:
        BuildError: the load generator can't be compiled. (With TLS that makes all peers absent.)
    """
    outcome = Outcome(workload, rounds)
    taking_part = able(workload, peers)
    if workload.is_tls:
        try:
            c_program("loadgen", with_tls=True)
            certificate()
        except BuildError as e:
            # The compiler's own words are long, and full of this machine's paths.
            reason = str(e) if "\n" not in str(e) else "the load generator needs OpenSSL's headers and library"
            outcome.absent = {peer.name: reason for peer in taking_part}
            return outcome
    for number in range(1, rounds + 1):
        for peer in taking_part:
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
        load = functools.partial(drive, server.port, cpu=pinning.load, pid=server.pid, with_tls=workload.is_tls)
        with contextlib.suppress(LoadError):  # so short, nothing may come back in time; all else shows below, too
            load([*workload.options, *_REHEARSAL], duration_s=_REHEARSAL_S, warmup_s=0.0)
        figures = load(workload.options, duration_s=duration_s, warmup_s=warmup_s)
        server.stop()
    return figures
