"""TimingWheel: when it looks, at what, and what it costs when there is nothing to look at."""

from __future__ import annotations

import itertools
import time

import pytest

from pymuduo import EventLoop
from pymuduo.timing_wheel import TimingWheel

ATTEMPTS = 100


def test_an_entry_is_looked_at_again_and_again_until_it_is_dropped(loop):
    looks = []

    def look(entry: str, now: float) -> float:
        looks.append(entry)
        return 0.0 if len(looks) < 5 else -1.0

    wheel = TimingWheel(loop, 0.05, look, loop.quit)
    wheel.add("a")
    assert len(wheel) == 1
    loop.run()
    assert looks == ["a"] * 5
    assert len(wheel) == 0


@pytest.mark.parametrize("wait_s", [0.0, 0.004, 0.03, 0.08, 5.0])
def test_a_look_comes_no_sooner_than_asked_or_a_revolution_after_the_last(loop, wait_s):
    seen: list[float] = []

    def look(entry: str, now: float) -> float:
        seen.append(now)
        return wait_s if len(seen) < 4 else -1.0

    wheel = TimingWheel(loop, 0.1, look, loop.quit)
    wheel.add("a")
    loop.run()
    soonest = min(wait_s, wheel.revolution_s) - wheel.tick_s  # the hand may be late for one and in time for the next
    assert all(later - sooner >= soonest for sooner, later in itertools.pairwise(seen))


def test_it_says_when_it_looks(loop):
    told = []

    def look(entry: str, now: float) -> float:
        told.append((now, time.monotonic()))
        return -1.0

    before = time.monotonic()
    TimingWheel(loop, 0.01, look, loop.quit).add("a")
    loop.run()
    [(now, after)] = told
    assert before <= now <= after


def test_entries_that_come_at_once_are_not_looked_at_in_one_tick(loop):
    for _ in range(ATTEMPTS):  # a machine that was held up for a revolution has to look at all of them
        moments: set[float] = set()

        def look(entry: int, now: float, moments: set[float] = moments) -> float:
            moments.add(now)
            return -1.0

        wheel = TimingWheel(loop, 0.08, look, loop.quit)
        for number in range(1000):
            wheel.add(number)
        loop.run()
        if len(moments) > 2:
            return
    raise AssertionError("they were always looked at all at once")


def test_every_entry_is_looked_at_once_in_a_revolution(loop):
    looks = [0] * 100

    def look(entry: int, now: float) -> float:
        looks[entry] += 1
        if min(looks) == 3:
            return -1.0
        return 60.0

    wheel = TimingWheel(loop, 0.05, look, loop.quit)
    for number in range(100):
        wheel.add(number)
    loop.run()
    assert max(looks) - min(looks) <= 1


def test_a_look_may_add_entries(loop):
    looks = []

    def look(entry: int, now: float) -> float:
        looks.append(entry)
        if entry < 3:
            wheel.add(entry + 1)
        return -1.0

    wheel = TimingWheel(loop, 0.01, look, loop.quit)
    wheel.add(0)
    loop.run()
    assert looks == [0, 1, 2, 3]


def test_a_loop_that_was_held_up_looks_at_everything_once(loop):
    looks = []

    def look(entry: int, now: float) -> float:
        looks.append(entry)
        loop.quit()
        return 60.0

    wheel = TimingWheel(loop, 0.02, look)
    for number in range(4):
        wheel.add(number)
    time.sleep(0.2)  # held up: that is what this test is about
    loop.run()
    assert sorted(looks) == [0, 1, 2, 3]
    wheel.close()


def test_it_has_a_timer_only_while_it_has_entries(loop):
    wheel = TimingWheel(loop, 0.01, lambda entry, now: -1.0, loop.quit)
    assert loop.timer_count == 0
    for _ in range(2):
        wheel.add("a")
        wheel.add("b")
        assert loop.timer_count == 1
        loop.run()
        assert loop.timer_count == 0


def test_close_drops_the_entries_and_does_not_call_back(loop):
    called: list[str] = []
    wheel = TimingWheel(loop, 0.01, lambda entry, now: 1.0, lambda: called.append("empty"))
    wheel.add("a")
    wheel.close()
    wheel.close()
    assert len(wheel) == 0
    assert loop.timer_count == 0
    assert called == []
    assert repr(wheel) == "<TimingWheel 0 entries, 0.01 s>"


def test_an_interrupt_in_a_look_loses_no_entry():
    with EventLoop() as loop:
        interrupts = [KeyboardInterrupt()]

        def look(entry: str, now: float) -> float:
            if interrupts:
                raise interrupts.pop()
            return -1.0

        wheel = TimingWheel(loop, 0.01, look, loop.quit)
        wheel.add("a")
        with pytest.raises(KeyboardInterrupt):
            loop.run()
        assert len(wheel) == 1
        loop.run()
        assert len(wheel) == 0
