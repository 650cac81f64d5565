"""What the programs have in common: the command line, the stopwatch, and how a figure is printed."""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence

from programs.loops import PEERS, PeerAbsentError

_LIMIT_S = 120  # a program that takes longer hangs: it ends with the stacks of its threads


def parser(description: str | None, peers: Sequence[str] = PEERS) -> argparse.ArgumentParser:
    """Return a parser with the options that every program takes."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--peer", choices=peers, default="pymuduo", help="whose loop (%(default)s)")
    made.add_argument("--cpu", type=int, metavar="N", help="run on processor N only")
    made.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    return made


def main(options: argparse.Namespace, measure: Callable[[argparse.Namespace], dict[str, float]]) -> None:
    """Measure and print; a peer that is not there is a result too: ``{"absent": reason}``."""
    faulthandler.dump_traceback_later(_LIMIT_S, exit=True)
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    try:
        figures = measure(options)
    except PeerAbsentError as e:
        print(json.dumps({"absent": str(e)}) if options.json else f"absent: {e}")
        return
    if options.json:
        print(json.dumps({"figures": figures}))
    else:
        for key, value in figures.items():
            print(f"{key:32} {value:16,.2f}")


def count(text: str) -> int:
    """Read a number of at least 1 from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


class Stopwatch:
    """Wall time and the process's processor time since it was made."""

    def __init__(self) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        self._cpu_s = used.ru_utime + used.ru_stime
        self._began_ns = time.perf_counter_ns()

    def stop(self) -> tuple[float, float]:
        """Return the seconds that passed, and the seconds of user and system time that all threads used."""
        seconds = (time.perf_counter_ns() - self._began_ns) / 1e9
        used = resource.getrusage(resource.RUSAGE_SELF)
        return seconds, used.ru_utime + used.ru_stime - self._cpu_s


def rates(name: str, operations: int, took: tuple[float, float]) -> dict[str, float]:
    """Return operations a second and processor time an operation, under keys that begin with *name*."""
    seconds, cpu_s = took
    return {f"{name}_per_s": operations / seconds, f"{name}_cpu_us": cpu_s / operations * 1e6}


def resident_bytes() -> int:
    """Return how much of this process is in memory."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def check(holds: bool, complaint: str) -> None:
    """End the program with status 3 if a result is wrong: its figures would be worth nothing."""
    if not holds:
        print(f"WRONG: {complaint}", file=sys.stderr)
        sys.exit(3)
