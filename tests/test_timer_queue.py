"""Timers: in order, never early, and cancelled means cancelled."""

# mypy: disable-error-code="func-returns-value"
# (lambda: (first(), second()) is how a callback does two things here)

from __future__ import annotations

import gc
import itertools
import math
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import PATIENCE_S, call_in_loop, eventually
from pymuduo import COMPILED, EventLoop, EventLoopThread, Timer, Timestamp, _sys
from pymuduo.timer_queue import TimerQueue, new_timer


@pytest.fixture
def queue(loop: EventLoop) -> Iterator[TimerQueue]:
    """Return a timer queue that the test runs by hand."""
    made = TimerQueue(loop)
    yield made
    made.close()


def spin(seconds: float) -> None:
    """Keep the loop busy."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


# --- order and time ---


def test_timers_run_in_the_order_of_their_expiry(loop: EventLoop) -> None:
    called: list[int] = []
    for delay_ms in (30, 5, 20, 1, 10):
        loop.run_after(delay_ms / 1000, called.append, delay_ms)
    loop.run_after(0.04, loop.quit)
    loop.run()
    assert called == [1, 5, 10, 20, 30]


@pytest.mark.parametrize("delay", [0.0, 0.0001, 0.0015, 0.01, 0.05])
def test_a_timer_is_never_early(loop: EventLoop, delay: float) -> None:
    called_at: list[int] = []
    before = _sys.monotonic_us()
    loop.run_after(delay, lambda: (called_at.append(_sys.monotonic_us()), loop.quit()))
    loop.run()
    assert called_at[0] - before >= delay * 1_000_000


def test_many_timers_are_never_early(loop: EventLoop) -> None:
    dice = random.Random(1)
    early: list[float] = []
    left = [200]

    def check(due_us: int) -> None:
        if _sys.monotonic_us() < due_us:
            early.append(due_us)
        left[0] -= 1
        if not left[0]:
            loop.quit()

    for _ in range(200):
        delay_us = dice.randrange(50_000)
        loop.run_after(delay_us / 1_000_000, check, _sys.monotonic_us() + delay_us)
    loop.run()
    assert early == []


def test_a_timer_passes_its_arguments(loop: EventLoop) -> None:
    called: list[tuple[Any, ...]] = []
    loop.run_after(0, lambda *args: called.append(args), 1, "two", None)
    loop.run_after(0.001, loop.quit)
    loop.run()
    assert called == [(1, "two", None)]


@given(whens=st.lists(st.integers(0, 5), max_size=40))
@settings(max_examples=50)
def test_the_same_expiry_is_first_come_first_served(whens: list[int]) -> None:
    called: list[tuple[int, int]] = []
    with EventLoop() as loop:
        queue = TimerQueue(loop)
        for number, when in enumerate(whens):
            queue.add(new_timer(loop, queue, lambda *a: called.append(a), (when, number), when, 0))
        queue.run_expired()
        queue.close()
    assert called == sorted((when, number) for number, when in enumerate(whens))


def test_a_timer_in_the_past_runs_as_soon_as_possible(loop: EventLoop) -> None:
    called: list[str] = []
    loop.run_at(Timestamp(1), called.append, "past")
    loop.run_at(Timestamp.now() + -5, lambda: (called.append("recent past"), loop.quit()))
    assert called == []  # but never inside the call
    loop.run()
    assert called == ["past", "recent past"]


def test_run_at_waits_for_its_moment(loop: EventLoop) -> None:
    begin_us = _sys.monotonic_us()
    when = Timestamp.now() + 0.02
    due_us = begin_us + 20_000 - 1000  # a millisecond for the difference of two clocks is plenty
    called_at: list[int] = []
    loop.run_at(when, lambda: (called_at.append(_sys.monotonic_us()), loop.quit()))
    loop.run()
    assert called_at[0] >= due_us


@pytest.mark.parametrize("wrong", [5, 5.0, None, "now"])
def test_run_at_takes_nothing_but_a_timestamp(loop: EventLoop, wrong: Any) -> None:
    with pytest.raises((TypeError, AttributeError)):
        loop.run_at(wrong, loop.quit)
    assert loop.timer_count == 0


@pytest.mark.parametrize("delay", [-1, -1e300, -math.inf])
def test_a_negative_delay_means_as_soon_as_possible(loop: EventLoop, delay: float) -> None:
    loop.run_after(delay, loop.quit)
    loop.run()


@pytest.mark.parametrize("delay", [1e9, 1e300, math.inf])
def test_a_huge_delay_means_never_and_harms_nobody(loop: EventLoop, delay: float) -> None:
    loop.run_after(delay, lambda: pytest.fail("a century early"))
    loop.run_every(delay, lambda: pytest.fail("a century early"))
    loop.run_after(0.005, loop.quit)
    loop.run()
    assert loop.timer_count == 2


def test_a_moment_in_the_far_future_means_never(loop: EventLoop) -> None:
    loop.run_at(Timestamp((1 << 63) - 1), lambda: pytest.fail("early"))
    loop.run_after(0.005, loop.quit)
    loop.run()
    assert loop.timer_count == 1


def test_a_delay_that_is_no_number_is_refused(loop: EventLoop) -> None:
    with pytest.raises(ValueError, match="nan"):
        loop.run_after(math.nan, loop.quit)
    for wrong in ("1", None):
        bad: Any = wrong
        with pytest.raises(TypeError):
            loop.run_after(bad, loop.quit)
    assert loop.timer_count == 0


@pytest.mark.parametrize("interval", [0, -1, 1e-7, math.nan, -math.inf])
def test_an_interval_that_is_no_time_is_refused_with_its_value(loop: EventLoop, interval: float) -> None:
    with pytest.raises(ValueError, match=rf"got {interval}"):
        loop.run_every(interval, loop.quit)
    assert loop.timer_count == 0


def test_a_timer_added_by_a_timer_waits_for_the_next_iteration(loop: EventLoop) -> None:
    iterations: list[int] = []

    def again() -> None:
        iterations.append(loop.iteration)
        if len(iterations) == 5:
            loop.quit()
        else:
            loop.run_after(0, again)

    loop.run_after(0, again)
    loop.run()
    assert len(set(iterations)) == 5


def test_timers_that_are_always_due_do_not_shut_out_functors(loop: EventLoop) -> None:
    called: list[str] = []

    def again() -> None:
        loop.run_after(0, again)

    loop.run_after(0, again)
    loop.queue_in_loop(lambda: loop.queue_in_loop(lambda: (called.append("functor"), loop.quit())))
    loop.run()
    assert called == ["functor"]


def test_an_earlier_timer_added_later_runs_first(loop: EventLoop) -> None:
    called: list[str] = []
    loop.run_after(3600, called.append, "late")
    loop.run_after(0.001, lambda: loop.run_after(0.001, lambda: (called.append("early"), loop.quit())))
    loop.run()
    assert called == ["early"]


def test_timers_set_from_another_thread_run_in_the_loops(loop_thread: EventLoop) -> None:
    where: list[int] = []
    done = threading.Event()
    loop_thread.run_after(0, lambda: where.append(threading.get_ident()))
    loop_thread.run_at(Timestamp.now(), lambda: where.append(threading.get_ident()))
    loop_thread.run_after(0.001, done.set)
    assert done.wait(PATIENCE_S)
    assert set(where) == {call_in_loop(loop_thread, threading.get_ident)}
    assert len(where) == 2


def test_a_timer_from_another_thread_wakes_a_sleeping_loop(loop_thread: EventLoop) -> None:
    call_in_loop(loop_thread, lambda: loop_thread.run_after(3600, lambda: None))
    done = threading.Event()
    loop_thread.run_after(0.001, done.set)
    assert done.wait(PATIENCE_S)


# --- run_every ---


def test_run_every_calls_again_and_again_until_cancelled(loop: EventLoop) -> None:
    called: list[int] = []

    def call() -> None:
        called.append(_sys.monotonic_us())
        if len(called) == 5:
            timer.cancel()
            loop.run_after(0.01, loop.quit)

    begin = _sys.monotonic_us()
    timer = loop.run_every(0.002, call)
    loop.run()
    assert len(called) == 5
    for number, at in enumerate(called, 1):
        assert at - begin >= number * 2000  # in step with the first call, so none is early


def test_run_every_stays_in_step_and_does_not_make_up_for_missed_calls(loop: EventLoop) -> None:
    # muduo re-arms at now + interval, so each late call delays all later ones.
    interval_us = 5000
    called: list[int] = []

    def call() -> None:
        called.append(_sys.monotonic_us())
        if len(called) == 1:
            spin(0.0235)  # misses four calls
        if len(called) == 6:
            loop.quit()

    earliest = _sys.monotonic_us()
    loop.run_every(interval_us / 1_000_000, call)
    latest = _sys.monotonic_us()
    loop.run()
    gaps = [b - a for a, b in itertools.pairwise(called)]
    assert gaps[0] >= 23_500  # the busy one
    assert called[5] >= earliest + interval_us * (1 + 4 + 5)  # the first, those missed, and five more
    steps = [(at - earliest) // interval_us for at in called]
    assert len(set(steps)) == 6  # never two calls for one step
    assert latest >= earliest


def test_a_busy_loop_calls_a_short_interval_once_an_iteration(loop: EventLoop) -> None:
    iterations: list[int] = []

    def call() -> None:
        iterations.append(loop.iteration)
        if len(iterations) == 50:
            loop.quit()

    loop.run_every(1e-6, call)
    loop.run()
    assert len(set(iterations)) == 50


def test_interval_tells_the_seconds_between_calls(loop: EventLoop) -> None:
    assert loop.run_every(0.25, loop.quit).interval == 0.25
    assert loop.run_after(0.25, loop.quit).interval == 0


# --- cancel ---


def test_a_cancelled_timer_is_not_called(loop: EventLoop) -> None:
    timer = loop.run_after(0.001, lambda: pytest.fail("cancelled"))
    repeating = loop.run_every(0.001, lambda: pytest.fail("cancelled"))
    loop.cancel(timer)
    repeating.cancel()
    assert loop.timer_count == 0
    loop.run_after(0.01, loop.quit)
    loop.run()


def test_cancelling_another_timer_due_in_the_same_batch_stops_it(loop: EventLoop) -> None:
    # In muduo it is called all the same (#668).
    called: list[str] = []
    timers: list[Timer] = []

    def cancel_all(name: str) -> None:
        called.append(name)
        for timer in timers:
            timer.cancel()

    timers += [loop.run_after(0.001, cancel_all, "a"), loop.run_after(0.0011, cancel_all, "b")]
    timers += [loop.run_every(0.0012, cancel_all, "c")]
    spin(0.005)  # all three are due in the first iteration
    loop.run_after(0.01, loop.quit)
    loop.run()
    assert called == ["a"]


def test_cancelling_a_repeating_timer_after_it_ran_in_the_same_batch_stops_it(loop: EventLoop) -> None:
    called: list[str] = []
    repeating = loop.run_every(0.001, called.append, "repeating")
    loop.run_after(0.0011, lambda: loop.cancel(repeating))
    spin(0.005)
    loop.run_after(0.02, loop.quit)
    loop.run()
    assert called == ["repeating"]


def test_a_repeating_timer_may_cancel_itself(loop: EventLoop) -> None:
    called: list[str] = []
    timer = loop.run_every(0.001, lambda: (called.append("once"), timer.cancel()))
    loop.run_after(0.01, loop.quit)
    loop.run()
    assert called == ["once"]
    assert loop.timer_count == 0


def test_a_timer_may_cancel_itself(loop: EventLoop) -> None:
    timer = loop.run_after(0.001, lambda: (timer.cancel(), loop.quit()))
    loop.run()
    assert loop.timer_count == 0


def test_cancelling_twice_or_after_expiry_is_harmless(loop: EventLoop) -> None:
    called: list[str] = []
    expired = loop.run_after(0, called.append, "expired")
    cancelled = loop.run_after(0.001, called.append, "cancelled")
    cancelled.cancel()
    cancelled.cancel()
    loop.run_after(0.002, loop.quit)
    loop.run()
    expired.cancel()
    expired.cancel()
    cancelled.cancel()
    assert called == ["expired"]
    assert loop.timer_count == 0


def test_cancelling_one_of_three_leaves_the_others(loop: EventLoop) -> None:
    called: list[int] = []
    timers = [loop.run_after(0.001 * i, called.append, i) for i in (1, 2, 3)]
    timers[1].cancel()
    loop.run_after(0.01, loop.quit)
    loop.run()
    assert called == [1, 3]


def test_cancelling_from_another_thread_stops_it(loop_thread: EventLoop) -> None:
    for delay in (0.1, 1.0, 10.0):
        called: list[str] = []
        begin = time.monotonic()
        timer = loop_thread.run_after(delay, called.append, "cancelled")
        timer.cancel()
        is_in_time = time.monotonic() < begin + delay / 2
        # Set after it and expiring after it: when this one has run, the other one would have too.
        done = threading.Event()
        loop_thread.run_after(delay + 0.05, done.set)
        assert done.wait(PATIENCE_S)
        if is_in_time:
            break
    assert called == []
    assert call_in_loop(loop_thread, lambda: loop_thread.timer_count) == 0


def test_cancelling_a_timer_before_the_loop_has_taken_it_in_stops_it(loop_thread: EventLoop) -> None:
    called: list[str] = []
    timers: list[Timer] = []
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        assert go_on.wait(PATIENCE_S)
        timers[0].cancel()  # its insertion is still queued behind this functor

    loop_thread.queue_in_loop(hold)
    assert held.wait(PATIENCE_S)
    timers.append(loop_thread.run_after(0, called.append, "cancelled"))
    go_on.set()
    done = threading.Event()
    loop_thread.run_after(0.005, done.set)
    assert done.wait(PATIENCE_S)
    assert called == []


def test_a_timer_is_cancelled_by_its_own_loop_only(loop: EventLoop, loop_thread: EventLoop) -> None:
    timer = loop_thread.run_after(60, lambda: None)
    with pytest.raises(ValueError, match="belongs to"):
        loop.cancel(timer)
    assert call_in_loop(loop_thread, lambda: loop_thread.timer_count) == 1


def test_cancelling_after_the_loop_was_closed_is_harmless() -> None:
    with EventLoop() as loop:
        timers = [loop.run_after(60, lambda: None) for _ in range(3)]
    for timer in timers:
        timer.cancel()
        loop.cancel(timer)


def test_cancelling_from_another_thread_after_the_loop_was_closed_is_harmless() -> None:
    thread = EventLoopThread(name="ends")
    loop = thread.start_loop()
    timer = loop.run_after(60, lambda: None)
    thread.stop()
    timer.cancel()


def test_setting_a_timer_on_a_closed_loop_raises(loop: EventLoop) -> None:
    loop.close()
    calls: list[Callable[[], Timer]] = [
        lambda: loop.run_after(0, print),
        lambda: loop.run_every(1, print),
        lambda: loop.run_at(Timestamp.now(), print),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="is closed"):
            call()


def test_pending_timers_that_are_cancelled_leave_nothing_behind(loop: EventLoop) -> None:
    count = 1_000_000 if COMPILED else 100_000
    dice = random.Random(3)
    timers = [loop.run_after(3600 + dice.random(), print) for _ in range(count)]
    assert loop.timer_count == count
    dice.shuffle(timers)
    for timer in timers:
        loop.cancel(timer)
    assert loop.timer_count == 0
    gone = weakref.ref(timers[0])
    del timers, timer
    gc.collect()
    assert gone() is None


def test_a_dropped_timer_still_runs(loop: EventLoop) -> None:
    called: list[str] = []
    loop.run_after(0.001, lambda: (called.append("ran"), loop.quit()))
    gc.collect()
    loop.run()
    assert called == ["ran"]


def test_an_expired_timer_lets_go_of_its_callback(loop: EventLoop) -> None:
    class Owner:
        def call(self) -> None:
            loop.quit()

    owner = Owner()
    gone = weakref.ref(owner)
    loop.run_after(0.001, owner.call)
    del owner
    loop.run()
    gc.collect()
    assert gone() is None


# --- exceptions ---


@pytest.mark.provokes_errors("of a timer")
def test_a_timer_that_raises_stops_neither_the_others_nor_itself(
    loop: EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[str] = []

    def fail() -> None:
        called.append("failing")
        if called.count("failing") == 3:
            repeating.cancel()
            loop.run_after(0.002, loop.quit)
        raise ZeroDivisionError("of a timer")

    repeating = loop.run_every(0.001, fail)
    loop.run_after(0.0011, called.append, "other")
    spin(0.003)  # due in one batch
    loop.run()
    assert called.count("failing") == 3
    assert called[:2] == ["failing", "other"]
    assert caplog.text.count("ZeroDivisionError: of a timer") == 3
    assert "<Timer " in caplog.text


def test_the_exception_handler_hears_of_a_timers_exception_and_of_the_timer(loop: EventLoop) -> None:
    heard: list[tuple[BaseException, object]] = []
    loop.exception_handler = lambda exception, source: heard.append((exception, source))
    timer = loop.run_after(0, lambda: 1 / 0)
    loop.run_after(0.001, loop.quit)
    loop.run()
    ((exception, source),) = heard
    assert isinstance(exception, ZeroDivisionError)
    assert source is timer


def test_keyboard_interrupt_in_a_timer_leaves_run_and_later_timers_run_next_time(loop: EventLoop) -> None:
    called: list[str] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    loop.run_after(0, interrupt)
    loop.run_after(0, called.append, "after")
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    assert called == []
    loop.run_after(0.001, loop.quit)
    loop.run()
    assert called == ["after"]


# --- the heap, against a sorted list ---


@given(st.lists(st.tuples(st.sampled_from(["add", "add", "cancel"]), st.integers(0, 30), st.integers(0, 1000))))
@settings(max_examples=150)
def test_the_heap_agrees_with_a_sorted_list(steps: list[tuple[str, int, int]]) -> None:
    called: list[tuple[int, int]] = []
    model: list[tuple[int, int]] = []
    timers: dict[tuple[int, int], Timer] = {}
    with EventLoop() as loop:
        queue = TimerQueue(loop)
        for number, (what, when, pick) in enumerate(steps):
            if what == "add":
                key = (when, number)
                timers[key] = new_timer(loop, queue, lambda *a: called.append(a), key, when, 0)
                queue.add(timers[key])
                model.append(key)
            elif model:
                key = model.pop(pick % len(model))
                queue.cancel(timers[key])
            assert len(queue) == len(model)
        queue.run_expired()
        queue.close()
    assert called == sorted(model)


@pytest.mark.parametrize("seed", range(5))
def test_timers_that_add_and_cancel_others_agree_with_a_sorted_list(loop: EventLoop, seed: int) -> None:
    dice = random.Random(seed)
    queue = TimerQueue(loop)
    timers: dict[int, Timer] = {}
    whens: dict[int, int] = {}
    called: list[int] = []

    def call(number: int) -> None:
        del timers[number]
        called.append(number)
        for _ in range(2):
            if timers and dice.random() < 0.3:
                victim = dice.choice(list(timers))
                queue.cancel(timers.pop(victim))

    for number in range(500):
        whens[number] = dice.randrange(100)
        timers[number] = new_timer(loop, queue, call, (number,), whens[number], 0)
        queue.add(timers[number])
    queue.run_expired()
    queue.close()
    assert timers == {}
    assert len(called) > 100
    assert called == sorted(called, key=lambda number: (whens[number], number))


def test_only_what_is_due_runs(loop: EventLoop, queue: TimerQueue) -> None:
    called: list[str] = []
    future_us = _sys.monotonic_us() + 3_600_000_000
    queue.add(new_timer(loop, queue, called.append, ("future",), future_us, 0))
    queue.add(new_timer(loop, queue, called.append, ("past",), 1, 0))
    queue.run_expired()
    assert called == ["past"]
    assert len(queue) == 1


# --- the object ---


def test_repr_names_the_callback_and_its_state(loop: EventLoop) -> None:
    def tick() -> None:
        pass

    once, repeating = loop.run_after(60, tick), loop.run_every(60, tick)
    assert "tick due in 59.9" in repr(once) or "tick due in 60.0" in repr(once)
    assert "tick every 60.0 s, next in " in repr(repeating)
    once.cancel()
    assert repr(once).endswith("tick cancelled>")


def test_a_timer_belongs_to_its_loop(loop: EventLoop) -> None:
    assert loop.run_after(60, print).loop is loop


def test_hammered_from_many_threads_no_timer_is_lost(loop_thread: EventLoop) -> None:
    called: list[int] = []
    count = 300

    def hammer(start: int) -> None:
        for i in range(start, start + count):
            timer = loop_thread.run_after((i % 7) / 1000, called.append, i)
            if i % 3 == 0:
                loop_thread.run_after(60, called.append, -1).cancel()
            if i % 50 == 0:
                assert timer.loop is loop_thread

    threads = [threading.Thread(target=hammer, args=(n * count,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: len(called) == 4 * count, "every timer runs once")
    assert sorted(called) == list(range(4 * count))
    assert call_in_loop(loop_thread, lambda: loop_thread.timer_count) == 0
