"""EventLoop: one per thread, doors for the others, and nothing lost, whoever calls when."""

# mypy: disable-error-code="func-returns-value"
# (lambda: (first(), second()) is how a callback does two things here)

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from conftest import PATIENCE_S, call_in_loop, eventually, open_descriptors
from pymuduo import Channel, EventLoop, EventLoopThread, Timestamp


def run_python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run *code* in a process of its own, at most a minute."""
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- one loop per thread ---


def test_current_is_the_threads_loop() -> None:
    assert EventLoop.current() is None
    with EventLoop() as loop:
        assert EventLoop.current() is loop
    assert EventLoop.current() is None


def test_each_thread_has_its_own(loop: EventLoop, loop_thread: EventLoop) -> None:
    assert EventLoop.current() is loop
    assert call_in_loop(loop_thread, EventLoop.current) is loop_thread


def test_a_second_loop_in_a_thread_is_refused_by_the_threads_name_and_harms_nobody() -> None:
    # In a process of its own: a loop half made must not close descriptors that it never opened, of which 0 is one.
    code = """
import gc, os
from pymuduo import EventLoop
with EventLoop() as loop:
    for args in ((), ("name",), (1, 2, 3)):
        try:
            EventLoop(*args)
        except (RuntimeError, TypeError) as e:
            print(e if isinstance(e, RuntimeError) else "TypeError")
        gc.collect()
        os.fstat(0)
    assert EventLoop.current() is loop
    loop.run_after(0.001, loop.quit)
    loop.run()
"""
    done = run_python(code)
    refusal = "thread 'MainThread' already has a loop: <EventLoop 'MainThread' idle> (one loop per thread)\n"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == 2 * refusal + "TypeError\n"


def test_a_new_loop_is_allowed_after_close() -> None:
    for _ in range(3):
        with EventLoop() as loop:
            loop.queue_in_loop(loop.quit)
            loop.run()


def test_the_name_is_the_threads_unless_given(loop_thread: EventLoop) -> None:
    assert loop_thread.name == "loop"
    with EventLoop() as loop:
        assert loop.name == threading.current_thread().name
    with EventLoop("mine") as loop:
        assert loop.name == "mine"


def test_context_belongs_to_the_user(loop: EventLoop) -> None:
    assert loop.context is None
    loop.context = {"a": 1}
    assert loop.context == {"a": 1}


# --- the wrong thread ---


@pytest.mark.parametrize(
    "call",
    [
        lambda loop: loop.run(),
        lambda loop: loop.close(),
        lambda loop: loop.call_at_close(print),
        lambda loop: loop.forget_at_close(print),
        lambda loop: loop.update_channel(Channel(loop, 0)),
        lambda loop: loop.remove_channel(Channel(loop, 0)),
        lambda loop: loop.has_channel(Channel(loop, 0)),
        lambda loop: loop.assert_in_loop_thread(),
    ],
    ids=["run", "close", "call_at_close", "forget_at_close", "update", "remove", "has", "assert"],
)
def test_what_is_no_door_refuses_other_threads_and_names_both(
    loop_thread: EventLoop, call: Callable[[EventLoop], object]
) -> None:
    with pytest.raises(
        RuntimeError, match=rf"belongs to thread 'loop', called from '{threading.current_thread().name}'"
    ):
        call(loop_thread)


def test_is_in_loop_thread_tells(loop: EventLoop, loop_thread: EventLoop) -> None:
    assert loop.is_in_loop_thread()
    assert not loop_thread.is_in_loop_thread()
    assert call_in_loop(loop_thread, loop_thread.is_in_loop_thread)


# --- run and quit ---


def test_quit_before_run_is_remembered(loop: EventLoop) -> None:
    # In muduo it is lost, and loop() never returns (#441).
    loop.quit()
    loop.run()
    assert not loop.is_running


def test_quit_is_used_up_by_the_run_that_it_ends(loop: EventLoop) -> None:
    loop.quit()
    loop.run()
    called: list[str] = []
    loop.run_after(0.002, lambda: (called.append("second run"), loop.quit()))
    loop.run()
    assert called == ["second run"]


def test_quit_from_a_functor_a_timer_and_a_channel(loop: EventLoop) -> None:
    loop.queue_in_loop(loop.quit)
    loop.run()
    loop.run_after(0.001, loop.quit)
    loop.run()
    read_end, write_end = os.pipe()
    channel = Channel(loop, read_end)
    channel.read_callback = lambda _: loop.quit()
    channel.enable_reading()
    os.write(write_end, b"x")
    loop.run()
    channel.disable_all()
    channel.remove()
    os.close(read_end)
    os.close(write_end)


def test_quit_from_another_thread_wakes_a_sleeping_loop(loop: EventLoop) -> None:
    thread = threading.Thread(target=lambda: (eventually(lambda: loop.iteration > 0 or loop.is_running), loop.quit()))
    thread.start()
    loop.run()
    thread.join()


def test_quit_from_another_thread_at_any_moment_is_never_lost() -> None:
    for i in range(200):
        with EventLoop() as loop:
            thread = threading.Thread(target=loop.quit)
            if i % 2:
                loop.queue_in_loop(thread.start)
            else:
                thread.start()
            loop.run()
            thread.join()


def test_run_twice_at_once_is_refused(loop: EventLoop) -> None:
    refused: list[str] = []

    def run_again() -> None:
        with pytest.raises(RuntimeError, match="is running already") as caught:
            loop.run()
        refused.append(str(caught.value))
        loop.quit()

    loop.queue_in_loop(run_again)
    loop.run()
    assert len(refused) == 1


def test_run_after_close_is_refused(loop: EventLoop) -> None:
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.run()


def test_is_running_tells(loop: EventLoop) -> None:
    seen: list[bool] = []
    assert not loop.is_running
    loop.queue_in_loop(lambda: (seen.append(loop.is_running), loop.quit()))
    loop.run()
    assert seen == [True]
    assert not loop.is_running


def test_an_idle_loop_sleeps(loop_thread: EventLoop) -> None:
    call_in_loop(loop_thread, lambda: None)
    before = call_in_loop(loop_thread, lambda: loop_thread.iteration)
    waited = threading.Event()
    waited.wait(0.05)
    after = call_in_loop(loop_thread, lambda: loop_thread.iteration)
    assert after - before <= 2


# --- functors ---


def test_run_in_loop_from_the_loops_thread_is_immediate(loop: EventLoop) -> None:
    called: list[int] = []
    loop.run_in_loop(called.append, 1)
    assert called == [1]


def test_run_in_loop_from_another_thread_is_queued_to_the_loops(loop_thread: EventLoop) -> None:
    where: list[int] = []
    done = threading.Event()
    loop_thread.run_in_loop(lambda: (where.append(threading.get_ident()), done.set()))
    assert done.wait(PATIENCE_S)
    assert where == [call_in_loop(loop_thread, threading.get_ident)]
    assert where != [threading.get_ident()]


def test_run_in_loop_from_the_loops_thread_raises_what_the_call_raises(loop: EventLoop) -> None:
    with pytest.raises(ZeroDivisionError):
        loop.run_in_loop(lambda: 1 / 0)


def test_queue_in_loop_is_never_immediate(loop: EventLoop) -> None:
    called: list[str] = []

    def first() -> None:
        loop.queue_in_loop(lambda: (called.append("second"), loop.quit()))
        called.append("first")

    loop.queue_in_loop(first)
    assert called == []
    loop.run()
    assert called == ["first", "second"]


def test_a_functor_queued_before_run_does_not_wait(loop: EventLoop) -> None:
    # In muduo it waits for the poll's time-out of 10 s (#260); here the first poll does not sleep at all.
    seen: list[int] = []
    loop.queue_in_loop(lambda: (seen.append(loop.iteration), loop.quit()))
    loop.run()
    assert seen == [1]


def test_a_functor_queued_by_a_functor_runs_in_the_next_iteration(loop: EventLoop) -> None:
    iterations: list[int] = []

    def again() -> None:
        iterations.append(loop.iteration)
        if len(iterations) == 4:
            loop.quit()
        else:
            loop.queue_in_loop(again)

    loop.queue_in_loop(again)
    loop.run()
    assert iterations == [1, 2, 3, 4]


def test_a_flood_of_functors_shuts_out_neither_events_nor_timers_nor_quit(loop: EventLoop) -> None:
    # Each queues two more, so that there are twice as many whenever those of now have run.
    runs: Counter[int] = Counter()
    seen: list[str] = []
    ours, theirs = os.pipe()
    channel = Channel(loop, ours)

    def breed() -> None:
        runs[loop.iteration] += 1
        if runs.total() == 50_000:
            os.write(theirs, b"x")
            loop.run_after(0, seen.append, "timer")
        if len(seen) < 2 and runs.total() < 200_000:
            loop.queue_in_loop(breed)
            loop.queue_in_loop(breed)
        else:
            loop.quit()

    def on_event(_: object) -> None:
        seen.append("event")
        channel.disable_all()

    channel.read_callback = on_event
    channel.enable_reading()
    loop.queue_in_loop(breed)
    loop.run()
    channel.remove()
    os.close(ours)
    os.close(theirs)
    assert sorted(seen) == ["event", "timer"]
    assert runs.total() < 200_000
    last = max(runs)
    assert max(count for iteration, count in runs.items() if iteration != last) == 4096
    assert runs[last] > 4096  # quit: all that was queued by then
    assert loop.pending_count == 0


@pytest.mark.parametrize("goes_on", [True, False])
@pytest.mark.parametrize("at", [0, 1, 100, 4095, 4096, 5000, 9999])
def test_functors_behind_one_that_breaks_a_run_off_wait_for_the_next_run_or_for_close(goes_on: bool, at: int) -> None:
    count = 10_000
    called: list[int] = []

    def run(n: int) -> None:
        called.append(n)
        if n == at:
            raise KeyboardInterrupt

    with EventLoop() as loop:
        for n in range(count):
            loop.queue_in_loop(run, n)
        with pytest.raises(KeyboardInterrupt):
            loop.run()
        assert called == [*range(at + 1)]
        assert loop.pending_count == count - len(called)
        assert loop.stats().functors == len(called)
        if goes_on:
            loop.queue_in_loop(loop.quit)
            loop.run()
            assert called == [*range(count)]
            assert loop.pending_count == 0
    assert called == [*range(count)]
    assert loop.pending_count == 0


def test_functors_pass_their_arguments(loop: EventLoop) -> None:
    called: list[tuple[Any, ...]] = []
    loop.queue_in_loop(lambda *args: called.append(args), 1, "two", None)
    loop.run_in_loop(lambda *args: called.append(args), 3)
    loop.quit()
    loop.run()
    assert called == [(3,), (1, "two", None)]


def test_functors_queued_after_quit_run_before_run_returns(loop: EventLoop) -> None:
    # In muduo they never run (#416, #448).
    called: list[str] = []
    loop.queue_in_loop(lambda: (loop.quit(), loop.queue_in_loop(called.append, "after quit")))
    loop.run()
    assert called == ["after quit"]


def test_functors_queued_by_the_last_functors_run_at_close(loop: EventLoop) -> None:
    called: list[int] = []

    def again(left: int) -> None:
        called.append(left)
        if left:
            loop.queue_in_loop(again, left - 1)

    loop.queue_in_loop(lambda: (loop.quit(), loop.queue_in_loop(again, 5)))
    loop.run()
    loop.close()
    assert called == [5, 4, 3, 2, 1, 0]


def test_functors_queued_between_runs_run_in_the_next(loop: EventLoop) -> None:
    called: list[str] = []
    loop.quit()
    loop.run()
    loop.queue_in_loop(called.append, "between")
    assert called == []
    loop.quit()
    loop.run()
    assert called == ["between"]


def test_functors_of_a_loop_that_never_ran_run_at_close() -> None:
    called: list[str] = []
    with EventLoop() as loop:
        loop.queue_in_loop(called.append, "at close")
    assert called == ["at close"]


@pytest.mark.provokes_errors("is closed")
def test_a_functor_that_queues_itself_for_ever_does_not_keep_close_from_ending() -> None:
    count = 0

    def again() -> None:
        nonlocal count
        count += 1
        if count < 100_000:  # for ever, but for this test
            loop.queue_in_loop(again)

    loop = EventLoop()
    loop.queue_in_loop(again)
    loop.queue_in_loop(loop.quit)
    loop.run()
    loop.close()
    assert count < 100_000


def test_functors_of_one_thread_keep_their_order(loop_thread: EventLoop) -> None:
    called: list[int] = []
    for i in range(5000):
        loop_thread.queue_in_loop(called.append, i)
    call_in_loop(loop_thread, lambda: None)
    assert called == list(range(5000))


def test_pending_count_tells_how_many_wait(loop: EventLoop) -> None:
    for _ in range(3):
        loop.queue_in_loop(lambda: None)
    assert loop.pending_count == 3
    loop.quit()
    loop.run()
    assert loop.pending_count == 0


@pytest.mark.usefixtures("switch_often")
def test_hammered_from_eight_threads_no_functor_is_lost_and_each_threads_order_holds(loop_thread: EventLoop) -> None:
    called: list[tuple[int, int]] = []
    count = 3000

    def hammer(number: int) -> None:
        for i in range(count):
            loop_thread.queue_in_loop(lambda *a: called.append(a), number, i)
            if i % 100 == 0:
                time.sleep(0)  # lets the loop fall asleep now and then

    threads = [threading.Thread(target=hammer, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: len(called) == 8 * count, "every functor runs")
    for number in range(8):
        assert [i for n, i in called if n == number] == list(range(count))


@pytest.mark.usefixtures("switch_often")
def test_a_loop_that_falls_asleep_after_each_call_misses_none(loop_thread: EventLoop) -> None:
    done = threading.Semaphore(0)

    def ask() -> None:
        for _ in range(500):
            loop_thread.queue_in_loop(done.release)
            assert done.acquire(timeout=PATIENCE_S), "a wake-up was lost"

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_burst_of_calls_costs_a_handful_of_wake_ups(loop_thread: EventLoop) -> None:
    calls = 100_000
    before = call_in_loop(loop_thread, loop_thread.stats)
    held, go_on = threading.Event(), threading.Event()
    loop_thread.queue_in_loop(lambda: (held.set(), go_on.wait(PATIENCE_S)))
    assert held.wait(PATIENCE_S)
    count = [0]

    def add() -> None:
        count[0] += 1

    for _ in range(calls):
        loop_thread.queue_in_loop(add)
    go_on.set()
    after = call_in_loop(loop_thread, loop_thread.stats)
    assert count[0] == calls
    assert after.wakeups - before.wakeups < 10
    assert after.iterations - before.iterations < calls / 4096 + 10


def test_a_running_burst_wakes_the_loop_far_less_often_than_it_calls(loop_thread: EventLoop) -> None:
    calls = 100_000
    count = [0]

    def add() -> None:
        count[0] += 1

    before = call_in_loop(loop_thread, lambda: loop_thread.iteration)
    for _ in range(calls):
        loop_thread.queue_in_loop(add)
    after = call_in_loop(loop_thread, lambda: loop_thread.iteration)
    assert count[0] == calls
    assert after - before < calls / 4


# --- exceptions ---


@pytest.mark.provokes_errors("of a functor")
def test_a_functor_that_raises_is_logged_with_its_traceback_and_the_loop_goes_on(
    loop: EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("of a functor")

    called: list[str] = []
    loop.queue_in_loop(fail)
    loop.queue_in_loop(called.append, "next")
    loop.queue_in_loop(loop.quit)
    loop.run()
    assert called == ["next"]
    (record,) = caplog.records
    assert record.name == "pymuduo.event_loop"
    assert record.levelname == "ERROR"
    assert "fail" in record.getMessage()
    assert "ZeroDivisionError: of a functor" in caplog.text
    assert "in fail" in caplog.text  # the traceback


def test_an_exception_handler_replaces_the_log(loop: EventLoop, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[tuple[BaseException, object]] = []

    def fail() -> None:
        raise ZeroDivisionError("of a functor")

    loop.exception_handler = lambda exception, source: heard.append((exception, source))
    loop.queue_in_loop(fail)
    loop.queue_in_loop(loop.quit)
    loop.run()
    ((exception, source),) = heard
    assert str(exception) == "of a functor"
    assert source is fail
    assert caplog.text == ""


@pytest.mark.provokes_errors("of the handler")
def test_an_exception_handler_that_raises_is_logged_and_the_loop_goes_on(
    loop: EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(exception: BaseException, source: object) -> None:
        raise ValueError("of the handler")

    called: list[str] = []
    loop.exception_handler = handler
    loop.queue_in_loop(lambda: 1 / 0)
    loop.queue_in_loop(called.append, "next")
    loop.queue_in_loop(loop.quit)
    loop.run()
    assert called == ["next"]
    assert "ValueError: of the handler" in caplog.text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_keyboard_interrupt_and_system_exit_leave_run_and_it_can_be_called_again(
    loop: EventLoop, kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def leave() -> None:
        raise kind

    called: list[str] = []
    loop.exception_handler = lambda exception, source: pytest.fail("no accident")
    loop.queue_in_loop(leave)
    loop.queue_in_loop(called.append, "left over")
    with pytest.raises(kind):
        loop.run()
    assert not loop.is_running
    assert called == []
    loop.queue_in_loop(loop.quit)
    loop.run()
    assert called == ["left over"]
    assert caplog.text == ""


def test_keyboard_interrupt_in_a_channels_callback_loses_no_event_of_the_others(loop: EventLoop) -> None:
    pipes = [os.pipe() for _ in range(2)]
    called: list[int] = []

    def read(number: int) -> None:
        called.append(number)
        os.read(pipes[number][0], 1)
        if len(called) == 1:
            raise KeyboardInterrupt
        loop.quit()

    channels = [Channel(loop, read_end) for read_end, _ in pipes]
    for number, channel in enumerate(channels):
        channel.read_callback = lambda _, number=number: read(number)
        channel.enable_reading()
        os.write(pipes[number][1], b"x")
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    loop.run()
    assert sorted(called) == [0, 1]
    for channel, ends in zip(channels, pipes, strict=True):
        channel.disable_all()
        channel.remove()
        for fd in ends:
            os.close(fd)


def test_a_handler_may_let_system_exit_leave_run(loop: EventLoop) -> None:
    def handler(exception: BaseException, source: object) -> None:
        raise SystemExit(3)

    loop.exception_handler = handler
    loop.queue_in_loop(lambda: 1 / 0)
    with pytest.raises(SystemExit):
        loop.run()


# --- signals ---


def test_ctrl_c_interrupts_a_sleeping_loop(loop: EventLoop) -> None:
    main = threading.get_ident()

    def interrupt() -> None:
        eventually(lambda: loop.iteration > 0)
        while not interrupted.is_set():
            signal.pthread_kill(main, signal.SIGINT)
            interrupted.wait(PATIENCE_S)

    interrupted = threading.Event()
    thread = threading.Thread(target=interrupt)
    loop.queue_in_loop(lambda: None)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run()
    finally:
        interrupted.set()
    thread.join()
    loop.quit()
    loop.run()


def test_ctrl_c_from_a_timer_interrupts_run(loop: EventLoop) -> None:
    loop.run_after(0.001, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        loop.run()


def test_a_signal_to_the_process_runs_its_python_handler_while_the_loop_sleeps(loop: EventLoop) -> None:
    heard: list[int] = []

    def handler(number: int, frame: object) -> None:
        heard.append(number)
        loop.quit()

    old = signal.signal(signal.SIGUSR1, handler)
    try:
        loop.run_after(0.001, os.kill, os.getpid(), signal.SIGUSR1)
        loop.run()
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert heard == [signal.SIGUSR1]


def test_a_signal_that_arrives_while_no_python_code_runs_is_not_slept_over() -> None:
    # libc's raise() as the callback: the signal is there when the loop goes to sleep, and nothing comes after it.
    code = """
import ctypes, signal
from pymuduo import EventLoop
libc_raise = getattr(ctypes.CDLL(None), "raise")
with EventLoop() as loop:
    loop.run_after(30, loop.quit)
    loop.run_after(0.001, libc_raise, int(signal.SIGINT))
    try:
        loop.run()
    except KeyboardInterrupt:
        print("interrupted with", loop.timer_count, "timer left")
"""
    assert run_python(code).stdout == "interrupted with 1 timer left\n"


# --- close ---


def test_the_context_manager_closes_every_descriptor() -> None:
    before = open_descriptors()
    with EventLoop():
        assert len(open_descriptors() - before) >= 2
    assert open_descriptors() == before


def test_close_twice_is_harmless(loop: EventLoop) -> None:
    loop.close()
    loop.close()
    assert loop.is_closed


def test_close_while_running_is_refused(loop: EventLoop) -> None:
    refused: list[BaseException] = []

    def close() -> None:
        with pytest.raises(RuntimeError, match="is running") as caught:
            loop.close()
        refused.append(caught.value)
        loop.quit()

    loop.queue_in_loop(close)
    loop.run()
    assert len(refused) == 1
    assert not loop.is_closed


def test_the_doors_of_a_closed_loop_are_shut(loop: EventLoop) -> None:
    loop.close()
    with pytest.raises(RuntimeError, match="is closed"):
        loop.queue_in_loop(print)
    assert not loop.post(print, ())
    loop.quit()  # harmless


def test_run_in_loop_of_a_closed_loop_raises_in_other_threads() -> None:
    thread = EventLoopThread(name="ends")
    loop = thread.start_loop()
    thread.stop()
    with pytest.raises(RuntimeError, match="is closed"):
        loop.run_in_loop(print)
    with pytest.raises(RuntimeError, match="is closed"):
        loop.queue_in_loop(print)
    with pytest.raises(RuntimeError, match="is closed"):
        loop.run_after(0, print)


@pytest.mark.usefixtures("switch_often")
def test_a_functor_that_was_accepted_runs_even_if_the_loop_is_just_being_closed() -> None:
    lost = 0
    for _ in range(100):
        ran: list[int] = []
        accepted = [0]
        started = threading.Event()
        loop = EventLoop()

        def post(
            loop: EventLoop = loop,
            ran: list[int] = ran,
            accepted: list[int] = accepted,
            started: threading.Event = started,
        ) -> None:
            started.set()
            for _ in range(5000):  # by far enough: it is refused long before
                if not loop.post(ran.append, (1,)):
                    break
                accepted[0] += 1

        thread = threading.Thread(target=post)
        thread.start()
        started.wait(PATIENCE_S)
        loop.close()
        thread.join()
        lost += accepted[0] - len(ran)
    assert lost == 0


def test_hooks_are_called_at_close_while_the_loop_is_still_there(loop: EventLoop) -> None:
    seen: list[tuple[str, bool, EventLoop | None]] = []
    loop.call_at_close(lambda: seen.append(("first", loop.is_closed, EventLoop.current())))
    loop.call_at_close(lambda: seen.append(("second", loop.is_closed, EventLoop.current())))
    loop.close()
    assert sorted(name for name, _, _ in seen) == ["first", "second"]
    assert all(not closed and current is loop for _, closed, current in seen)


def test_a_hook_taken_back_is_not_called(loop: EventLoop) -> None:
    called: list[str] = []

    def hook() -> None:
        called.append("hook")

    loop.call_at_close(hook)
    loop.forget_at_close(hook)
    loop.forget_at_close(hook)
    loop.close()
    assert called == []


@pytest.mark.provokes_errors("of a hook")
def test_a_hook_may_queue_functors_and_raise(loop: EventLoop, caplog: pytest.LogCaptureFixture) -> None:
    called: list[str] = []

    def hook() -> None:
        loop.queue_in_loop(called.append, "functor")
        raise ZeroDivisionError("of a hook")

    loop.call_at_close(lambda: called.append("other"))
    loop.call_at_close(hook)
    loop.close()
    assert called == ["other", "functor"]
    assert "ZeroDivisionError: of a hook" in caplog.text


def test_channels_that_were_left_are_let_go_of_at_close(loop: EventLoop) -> None:
    read_end, write_end = os.pipe()
    channel = Channel(loop, read_end)
    channel.enable_reading()
    loop.close()
    assert channel.is_none_event
    os.fstat(read_end)  # not the loop's: still open
    os.close(read_end)
    os.close(write_end)


def test_a_closed_loop_can_be_collected(loop: EventLoop) -> None:
    made = EventLoop.current()
    assert made is loop
    loop.close()
    with EventLoop() as other:
        other.run_after(60, print)
        gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None


# A loop that is dropped: its thread ends without closing it.


def drop_a_loop() -> None:
    thread = threading.Thread(target=EventLoop, args=("dropped",))
    thread.start()
    thread.join()
    del thread
    gc.collect()


def test_dropping_an_unclosed_loop_warns_and_leaks_nothing() -> None:
    before = open_descriptors()
    with pytest.warns(ResourceWarning, match="'dropped' idle> was never closed"):
        drop_a_loop()
    assert open_descriptors() == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_dropping_an_unclosed_loop_leaks_nothing_even_if_warnings_are_errors() -> None:
    code = """
import gc, os, sys, threading
from pymuduo import EventLoop
sys.unraisablehook = lambda unraisable: print(type(unraisable.exc_value).__name__)
before = os.listdir("/proc/self/fd")
thread = threading.Thread(target=EventLoop)
thread.start()
thread.join()
del thread
gc.collect()
print(os.listdir("/proc/self/fd") == before)
"""
    assert run_python(code, "-W", "error::ResourceWarning").stdout == "ResourceWarning\nTrue\n"


def test_a_closed_loop_does_not_warn() -> None:
    done = run_python(
        "from pymuduo import EventLoop\nwith EventLoop() as loop:\n    loop.quit()\n    loop.run()", "-W", "error"
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- fork ---

FORK = """
import os, sys
from pymuduo import EventLoop

def in_child(fn):
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            code = fn() or 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def test_the_child_of_a_fork_can_not_run_its_parents_loop() -> None:
    code = f"""{FORK}
loop = EventLoop()
def child():
    try:
        loop.run()
    except RuntimeError as e:
        assert "forked child needs a loop of its own" in str(e), e
        return 42
print(in_child(child))
loop.close()
"""
    assert run_python(code).stdout == "42\n"


def test_the_child_of_a_fork_can_make_a_loop_of_its_own() -> None:
    code = f"""{FORK}
loop = EventLoop()
def child():
    with EventLoop() as mine:
        mine.run_after(0.001, mine.quit)
        mine.run()
    return 42
print(in_child(child))
loop.close()
"""
    done = run_python(code)
    assert (done.stdout, done.stderr) == ("42\n", "")


def test_closing_the_loop_in_a_forked_child_leaves_the_parents_alone() -> None:
    # The two share one epoll instance: what the child takes out of it is gone in the parent.
    code = f"""{FORK}
import signal, threading
loop = EventLoop()
print(in_child(lambda: loop.close()), flush=True)
signal.alarm(60)  # ends a parent that no timer and no wake-up reaches any more
loop.run_after(0.001, loop.quit)
loop.run()
print("timer")
threading.Timer(0.01, loop.quit).start()
loop.run()
print("wake-up")
loop.close()
"""
    assert run_python(code).stdout == "0\ntimer\nwake-up\n"


def test_dropping_the_loop_in_a_forked_child_leaves_the_parents_alone() -> None:
    code = f"""{FORK}
import signal
loop = EventLoop()
pid = os.fork()
if pid == 0:
    sys.exit(0)  # an orderly end: what the interpreter drops is dropped
os.waitpid(pid, 0)
signal.alarm(60)
loop.run_after(0.001, loop.quit)
loop.run()
loop.close()
print("timer")
"""
    assert run_python(code).stdout == "timer\n"


def test_a_loop_made_in_the_child_of_a_fork_hears_the_childs_signals() -> None:
    # The fork happens inside a callback, while the parent's loop has asked to be woken by signals.
    code = f"""{FORK}
import ctypes, signal
libc_raise = getattr(ctypes.CDLL(None), "raise")
def child():
    code = 43
    with EventLoop() as mine:
        def handler(*_):
            nonlocal code
            code = 42
            mine.quit()
        signal.signal(signal.SIGUSR1, handler)
        mine.run_after(0.001, libc_raise, int(signal.SIGUSR1))  # no Python code runs after it
        mine.run_after(30, lambda: os._exit(43))
        mine.run()
    return code
with EventLoop() as loop:
    loop.queue_in_loop(lambda: (print(in_child(child)), loop.quit()))
    loop.run()
"""
    assert run_python(code).stdout == "42\n"


# --- time ---


def test_poll_return_time_is_the_same_within_an_iteration(loop: EventLoop) -> None:
    times: list[Timestamp] = []

    def note() -> None:
        begin = time.monotonic()
        while time.monotonic() < begin + 0.001:
            pass
        times.append(loop.poll_return_time)

    before = Timestamp.now()
    loop.run_after(0, note)
    loop.queue_in_loop(note)
    loop.queue_in_loop(note)
    loop.queue_in_loop(loop.run_after, 0.01, lambda: (note(), loop.quit()))
    loop.run()
    assert len(times) == 4
    assert times[0] == times[1] or times[1] == times[2]
    assert before <= times[0] <= times[3]
    assert times[3] - times[0] > 0.001


def test_iteration_counts_polls(loop: EventLoop) -> None:
    assert loop.iteration == 0
    loop.quit()
    loop.run()
    first = loop.iteration
    loop.queue_in_loop(loop.quit)
    loop.run()
    assert loop.iteration == first + 1


# --- the object ---


def test_repr_tells_name_and_state() -> None:
    seen: list[str] = []
    with EventLoop("mine") as loop:
        assert repr(loop) == "<EventLoop 'mine' idle>"
        loop.queue_in_loop(lambda: (seen.append(repr(loop)), loop.quit()))
        loop.run()
    assert seen == ["<EventLoop 'mine' running>"]
    assert repr(loop) == "<EventLoop 'mine' closed>"


def test_an_unknown_attribute_is_refused(loop: EventLoop) -> None:
    any_loop: Any = loop
    with pytest.raises(AttributeError):
        any_loop.exeption_handler = print


def test_no_descriptor_left_is_an_os_error_and_leaks_nothing() -> None:
    code = """
import os, resource
from pymuduo import EventLoop
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

def fill():
    held = []
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        return held

held = fill()
for spare in range(10):  # room for none of the loop's descriptors, for one, for two …
    try:
        loop = EventLoop()
    except OSError as e:
        assert str(e).startswith("[Errno 24] Too many open files") or "failed: Too many open files" in str(e), e
        assert EventLoop.current() is None
        room = fill()
        assert len(room) == spare, (len(room), spare)
        for fd in room:
            os.close(fd)
    else:
        loop.close()
        print("made with", spare > 0)
        break
    os.close(held.pop())
"""
    done = run_python(code, "-W", "error")
    assert (done.stdout, done.stderr) == ("made with True\n", "")


def test_run_needs_no_descriptor() -> None:
    # A server whose table is full must be able to go on.
    code = """
import os, resource
from pymuduo import EventLoop
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with EventLoop() as loop:
    held = []
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        pass
    loop.run_after(0.001, loop.quit)
    loop.run()
    for fd in held:
        os.close(fd)
print("ran")
"""
    done = run_python(code)
    assert (done.stdout, done.stderr) == ("ran\n", "")


# --- counters, and what holds a loop up ---


def test_stats_count_iterations_events_functors_and_wakeups(loop_thread):
    before = call_in_loop(loop_thread, loop_thread.stats)
    for _ in range(10):
        call_in_loop(loop_thread, lambda: None)
    after = call_in_loop(loop_thread, loop_thread.stats)
    assert after.functors - before.functors == 11
    assert after.iterations > before.iterations
    assert 1 <= after.wakeups - before.wakeups <= 11
    assert after.events - before.events >= after.wakeups - before.wakeups
    assert after.busy_s > before.busy_s
    assert 0 < after.longest_iteration_s <= after.busy_s


class Slow:
    def take_long(self) -> None:
        deadline = time.monotonic() + 0.1
        while time.monotonic() < deadline:
            pass


def slow_by_functor(loop: EventLoop) -> None:
    loop.queue_in_loop(Slow().take_long)


def slow_by_timer(loop: EventLoop) -> None:
    loop.run_after(0, Slow().take_long)


def slow_by_channel(loop: EventLoop) -> None:
    reader, writer = os.pipe()
    channel = Channel(loop, reader)

    def on_readable(receive_time: Timestamp) -> None:
        channel.disable_all()
        channel.remove()
        os.close(reader)
        os.close(writer)
        Slow().take_long()

    channel.read_callback = on_readable
    channel.enable_reading()
    os.write(writer, b"x")


@pytest.mark.usefixtures("log_of_slowness")
@pytest.mark.parametrize(
    ("start", "name"),
    [
        (slow_by_functor, "Slow.take_long"),
        (slow_by_timer, "timer test_event_loop.Slow.take_long"),
        (slow_by_channel, "slow_by_channel.<locals>.on_readable"),
    ],
)
def test_a_slow_callback_is_named_in_the_log(loop, caplog, start, name):
    loop.slow_callback_s = 0.05
    start(loop)
    loop.run_after(0.12, loop.quit)
    loop.run()
    (record,) = [record for record in caplog.records if "held the loop up" in record.getMessage()]
    assert record.levelno == logging.WARNING
    assert name in record.getMessage()
    assert loop.stats().slow_callbacks >= 1


@pytest.mark.usefixtures("log_of_slowness")
def test_slow_callbacks_are_logged_once_a_second_at_most_and_counted_always(loop, caplog):
    loop.slow_callback_s = 0.01
    for _ in range(4):
        loop.queue_in_loop(Slow().take_long)
    loop.quit()
    begin = time.monotonic()
    loop.run()
    seconds = time.monotonic() - begin
    assert loop.stats().slow_callbacks == 4
    lines = [record for record in caplog.records if "held the loop up" in record.getMessage()]
    assert 1 <= len(lines) <= 1 + int(seconds), seconds


@pytest.mark.usefixtures("log_of_slowness")
def test_slow_callbacks_are_not_looked_for_when_turned_off(loop, caplog):
    loop.slow_callback_s = 0
    loop.queue_in_loop(Slow().take_long)
    loop.quit()
    loop.run()
    assert loop.stats().slow_callbacks == 0
    assert caplog.records == []
    with pytest.raises(ValueError, match="slow_callback_s"):
        loop.slow_callback_s = -1
