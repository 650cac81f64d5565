"""Calls from other threads into a loop, a second: ``queue_in_loop``, or asyncio's ``call_soon_threadsafe``.

burst         one thread makes all the calls and waits for the last to have run; the loop sleeps at first
four_threads  four threads at once, a quarter of the calls each

The calls of a thread must run in the order in which it made them; a lost or a disordered one is an error.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable

from programs import command, loops


def burst(loop: loops.Loop, threads: int, calls: int) -> tuple[float, float]:
    """Let *threads* threads make *calls* calls together; return wall and processor seconds until the last has run."""
    share = calls // threads
    # What is called is as cheap as can be, so that the door is measured and not the call: a list's append.
    seen: list[list[int]] = [[] for _ in range(threads)]
    stopwatches: list[command.Stopwatch] = []
    took: list[tuple[float, float]] = []
    ended = 0
    # The last thread to be ready starts the stopwatch, before it lets any of them go.
    start = threading.Barrier(threads, action=lambda: stopwatches.append(command.Stopwatch()))

    def make_calls(call: Callable[[int], object]) -> None:
        door = loop.call_from_thread
        start.wait()
        for number in range(share):
            door(call, number)
        door(end_if_last)

    def end_if_last() -> None:
        nonlocal ended
        ended += 1
        if ended == threads:
            took.append(stopwatches[0].stop())
            loop.stop()

    def start_threads() -> None:
        for numbers in seen:
            threading.Thread(target=make_calls, args=(numbers.append,), daemon=True).start()

    loop.call_soon(start_threads)
    loop.run()
    for numbers in seen:
        command.check(len(numbers) == share, f"{len(numbers)} of {share} calls of a thread have run")
        command.check(numbers == list(range(share)), "the calls of a thread ran out of order")
    return took[0]


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Measure both, after a warm-up of a hundredth."""
    loop = loops.make(options.peer)
    try:
        burst(loop, 1, max(options.calls // 100, 1))
        one = burst(loop, 1, options.calls)
        four = burst(loop, 4, options.calls)
    finally:
        loop.close()
    return command.rates("burst", options.calls, one) | command.rates("four_threads", options.calls // 4 * 4, four)


if __name__ == "__main__":
    parser = command.parser(__doc__)
    parser.add_argument("--calls", type=command.count, default=200_000, metavar="N", help="each time (%(default)s)")
    command.main(parser.parse_args(), measure)
