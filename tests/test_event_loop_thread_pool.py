"""EventLoopThreadPool: N loops in N threads, dealt out in turn, and none is none."""

# mypy: disable-error-code="func-returns-value"
# (lambda: (first(), second()) is how a callback does two things here)

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import PATIENCE_S, call_in_loop, eventually, open_descriptors
from pymuduo import EventLoop, EventLoopThreadPool


@pytest.fixture
def pool(loop: EventLoop) -> Iterator[EventLoopThreadPool]:
    """Return a pool of three threads that is not started yet."""
    made = EventLoopThreadPool(loop, "io", 3)
    yield made
    made.stop()


def test_started_it_has_as_many_threads_named_in_order(pool: EventLoopThreadPool) -> None:
    assert not pool.is_started
    pool.start()
    assert pool.is_started
    loops = pool.loops()
    assert [loop.name for loop in loops] == ["io0", "io1", "io2"]
    threads = [call_in_loop(loop, threading.current_thread) for loop in loops]
    assert [thread.name for thread in threads] == ["io0", "io1", "io2"]
    assert len({*threads, threading.current_thread()}) == 4


def test_next_loop_goes_round(pool: EventLoopThreadPool) -> None:
    pool.start()
    a, b, c = pool.loops()
    assert [pool.next_loop() for _ in range(7)] == [a, b, c, a, b, c, a]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 1000, -1, 1 << 70])
def test_the_same_code_gets_the_same_loop(pool: EventLoopThreadPool, code: int) -> None:
    pool.start()
    assert pool.loop_for_hash(code) is pool.loop_for_hash(code)
    assert pool.loop_for_hash(code) is pool.loops()[code % 3]


def test_without_threads_the_base_loop_does_everything(loop: EventLoop) -> None:
    pool = EventLoopThreadPool(loop)
    seen: list[EventLoop] = []
    pool.start(seen.append)
    assert seen == [loop]
    assert pool.next_loop() is loop
    assert pool.loop_for_hash(5) is loop
    assert pool.loops() == [loop]
    pool.stop()


def test_the_init_callback_is_called_in_each_thread(pool: EventLoopThreadPool) -> None:
    seen: list[tuple[EventLoop, str]] = []
    pool.start(lambda loop: seen.append((loop, threading.current_thread().name)))
    assert seen == [(loop, loop.name) for loop in pool.loops()]


def test_an_error_in_an_init_callback_is_raised_and_stops_those_already_started(pool: EventLoopThreadPool) -> None:
    before = open_descriptors()

    def init(loop: EventLoop) -> None:
        if loop.name == "io2":
            raise ZeroDivisionError("in the third")

    with pytest.raises(ZeroDivisionError, match="in the third"):
        pool.start(init)
    assert open_descriptors() == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("io")]


def test_started_twice_is_refused(pool: EventLoopThreadPool) -> None:
    pool.start()
    with pytest.raises(RuntimeError, match="'io' 3 threads, started> is started already"):
        pool.start()


def test_thread_num_can_be_set_until_it_is_started(pool: EventLoopThreadPool) -> None:
    pool.thread_num = 1
    assert pool.thread_num == 1
    pool.start()
    assert len(pool.loops()) == 1
    with pytest.raises(RuntimeError, match="can't change"):
        pool.thread_num = 2
    assert pool.thread_num == 1


@pytest.mark.parametrize(
    ("wrong", "kind"), [(-1, ValueError), ("2", TypeError), (2.0, TypeError), (None, TypeError), (True, TypeError)]
)
def test_a_thread_num_that_is_no_number_of_threads_is_refused_with_its_value(
    loop: EventLoop, wrong: Any, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match="thread_num must be") as caught:
        EventLoopThreadPool(loop, "io", wrong)
    assert repr(wrong) in str(caught.value)
    pool = EventLoopThreadPool(loop, "io", 1)
    with pytest.raises(kind, match="thread_num must be"):
        pool.thread_num = wrong
    assert pool.thread_num == 1


def test_another_thread_is_refused_and_both_are_named(loop_thread: EventLoop) -> None:
    pool = EventLoopThreadPool(loop_thread, "io", 1)
    for call in (
        pool.start,
        pool.next_loop,
        lambda: pool.loop_for_hash(1),
        lambda: pool.quit(lambda: None),
    ):
        with pytest.raises(RuntimeError, match=rf"'loop', called from '{threading.current_thread().name}'"):
            call()
    assert not pool.is_started


def test_stop_ends_every_thread_and_twice_is_harmless(pool: EventLoopThreadPool) -> None:
    before = open_descriptors()
    pool.start()
    loops = pool.loops()
    pool.stop()
    assert all(loop.is_closed for loop in loops)
    assert open_descriptors() == before
    pool.stop()


def test_stop_of_a_pool_never_started_is_harmless(pool: EventLoopThreadPool) -> None:
    pool.stop()
    assert not pool.is_started


def test_a_stopped_pool_deals_out_the_base_loop(pool: EventLoopThreadPool, loop: EventLoop) -> None:
    pool.start()
    pool.next_loop()
    pool.stop()
    assert pool.next_loop() is loop
    assert pool.loops() == [loop]


@pytest.mark.parametrize("thread_num", [0, 1, 3])
def test_quit_returns_at_once_and_calls_back_once_in_the_base_loop_when_all_have_ended(
    loop: EventLoop, thread_num: int
) -> None:
    pool = EventLoopThreadPool(loop, "io", thread_num)
    pool.start()
    loops = pool.loops()
    ended: list[tuple[int, bool]] = []

    def all_ended() -> None:
        ended.append((threading.get_ident(), all(io.is_closed for io in loops if io is not loop)))
        loop.run_after(0.005, loop.quit)

    pool.quit(all_ended)
    assert ended == []
    loop.run()
    assert ended == [(threading.get_ident(), True)]
    assert pool.loops() == [loop]


def test_stop_after_quit_keeps_the_promise_to_call_back(loop: EventLoop) -> None:
    pool = EventLoopThreadPool(loop, "io", 2)
    pool.start()
    go_on = threading.Event()
    for io in pool.loops():
        io.queue_in_loop(go_on.wait, PATIENCE_S)  # both end after stop has begun
    ended: list[str] = []
    pool.quit(lambda: (ended.append("all"), loop.quit()))
    threading.Timer(0.01, go_on.set).start()
    pool.stop()
    loop.run_after(2, loop.quit)  # ends a run that nothing else would
    loop.run()
    assert ended == ["all"]


def test_quit_calls_back_although_a_thread_ended_by_itself(loop: EventLoop) -> None:
    pool = EventLoopThreadPool(loop, "io", 2)
    pool.start()
    first, _ = pool.loops()
    first.quit()
    eventually(lambda: first.is_closed)
    ended: list[str] = []
    pool.quit(lambda: (ended.append("all"), loop.quit()))
    loop.run_after(5, loop.quit)  # ends a run that nothing else would
    loop.run()
    assert ended == ["all"]


def test_functors_queued_to_a_pool_run_before_it_has_stopped(pool: EventLoopThreadPool) -> None:
    pool.start()
    ran: list[int] = []
    for i in range(300):
        pool.next_loop().queue_in_loop(ran.append, i)
    pool.stop()
    assert sorted(ran) == list(range(300))


def test_loops_of_a_pool_can_call_each_other(pool: EventLoopThreadPool) -> None:
    pool.start()
    loops = pool.loops()
    done = threading.Event()

    def hop(left: int) -> None:
        if left:
            loops[left % 3].queue_in_loop(hop, left - 1)
        else:
            done.set()

    loops[0].queue_in_loop(hop, 500)
    assert done.wait(PATIENCE_S)


def test_repr_tells_name_size_and_state(pool: EventLoopThreadPool) -> None:
    assert repr(pool) == "<EventLoopThreadPool 'io' 3 threads, new>"
    pool.start()
    assert repr(pool) == "<EventLoopThreadPool 'io' 3 threads, started>"
