"""EventLoopThread: starts when it says so, ends when it is told, and reports what went wrong."""

from __future__ import annotations

import gc
import os
import threading
import weakref

import pytest

from conftest import PATIENCE_S, call_in_loop, eventually, open_descriptors
from pymuduo import Channel, EventLoop, EventLoopThread


def test_start_loop_returns_a_loop_that_runs_in_a_thread_of_that_name() -> None:
    thread = EventLoopThread(name="worker")
    loop = thread.start_loop()
    where = call_in_loop(loop, threading.current_thread)
    assert where is not threading.current_thread()
    assert where.name == "worker"
    assert where.daemon
    assert loop.name == "worker"
    assert thread.is_alive
    assert thread.stop(PATIENCE_S)


def test_the_loop_is_there_from_start_to_stop_and_only_then() -> None:
    thread = EventLoopThread()
    assert thread.loop is None
    loop = thread.start_loop()
    assert thread.loop is loop
    assert thread.stop(PATIENCE_S)
    assert thread.loop is None


def test_as_a_context_manager_it_starts_and_stops() -> None:
    before = open_descriptors()
    with EventLoopThread(name="worker") as loop:
        assert call_in_loop(loop, EventLoop.current) is loop
    assert loop.is_closed
    assert open_descriptors() == before


def test_the_init_callback_gets_the_loop_in_its_thread_before_it_runs() -> None:
    seen: list[tuple[EventLoop, str, bool]] = []

    def init(loop: EventLoop) -> None:
        seen.append((loop, threading.current_thread().name, loop.is_running))

    with EventLoopThread(init, name="worker") as loop:
        assert seen == [(loop, "worker", False)]


def test_what_the_init_callback_queues_runs() -> None:
    ran = threading.Event()
    with EventLoopThread(lambda loop: loop.queue_in_loop(ran.set)):
        assert ran.wait(PATIENCE_S)


def test_an_init_callback_may_quit() -> None:
    # In muduo the quit before loop() is lost, and joining the thread hangs (#441).
    thread = EventLoopThread(lambda loop: loop.quit())
    thread.start_loop()
    assert thread.join(PATIENCE_S)


def test_an_error_in_the_init_callback_is_raised_to_the_starter_and_leaks_nothing() -> None:
    def init(loop: EventLoop) -> None:
        raise ZeroDivisionError("of the init callback")

    before = open_descriptors()
    thread = EventLoopThread(init, name="worker")
    with pytest.raises(ZeroDivisionError, match="of the init callback"):
        thread.start_loop()
    assert not thread.is_alive
    assert thread.loop is None
    assert open_descriptors() == before
    assert thread.stop(PATIENCE_S)


def test_a_loop_that_can_not_be_made_is_raised_to_the_starter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYMUDUO_POLLER", "kqueue")
    thread = EventLoopThread()
    with pytest.raises(ValueError, match="kqueue"):
        thread.start_loop()
    assert not thread.is_alive


def test_started_twice_is_refused() -> None:
    thread = EventLoopThread(name="worker")
    loop = thread.start_loop()
    with pytest.raises(RuntimeError, match="'worker' running> is started already"):
        thread.start_loop()
    assert thread.loop is loop
    assert thread.stop(PATIENCE_S)
    with pytest.raises(RuntimeError, match="'worker' ended> is started already"):
        thread.start_loop()


def test_stop_twice_and_stop_without_start_are_harmless() -> None:
    thread = EventLoopThread()
    assert thread.stop(PATIENCE_S)
    thread = EventLoopThread()
    thread.start_loop()
    assert thread.stop(PATIENCE_S)
    assert thread.stop(PATIENCE_S)
    assert thread.join(PATIENCE_S)


def test_stop_in_its_own_thread_is_refused_and_the_loop_goes_on() -> None:
    thread = EventLoopThread()
    loop = thread.start_loop()
    with pytest.raises(RuntimeError):
        call_in_loop(loop, thread.stop)
    assert thread.stop(PATIENCE_S)


def test_stop_gives_up_after_its_timeout() -> None:
    thread = EventLoopThread()
    loop = thread.start_loop()
    go_on = threading.Event()
    loop.queue_in_loop(go_on.wait, PATIENCE_S)
    assert not thread.stop(0.01)
    assert thread.is_alive
    go_on.set()
    assert thread.join(PATIENCE_S)


def test_quit_returns_at_once_and_calls_back_in_the_thread_when_the_loop_is_closed() -> None:
    thread = EventLoopThread(name="worker")
    loop = thread.start_loop()
    go_on = threading.Event()
    loop.queue_in_loop(go_on.wait, PATIENCE_S)
    ended: list[tuple[str, bool]] = []
    thread.quit(lambda: ended.append((threading.current_thread().name, loop.is_closed)))
    assert ended == []
    go_on.set()
    assert thread.join(PATIENCE_S)
    assert ended == [("worker", True)]


def test_stop_after_quit_keeps_the_promise_to_call_back() -> None:
    thread = EventLoopThread()
    loop = thread.start_loop()
    go_on = threading.Event()
    loop.queue_in_loop(go_on.wait, PATIENCE_S)
    ended = threading.Event()
    thread.quit(ended.set)
    assert not thread.stop(0)
    go_on.set()
    assert thread.join(PATIENCE_S)
    assert ended.is_set()


def test_quit_after_the_thread_has_ended_still_calls_back() -> None:
    thread = EventLoopThread()
    loop = thread.start_loop()
    loop.quit()
    assert thread.join(PATIENCE_S)
    ended = threading.Event()
    thread.quit(ended.set)
    assert ended.is_set()


def test_functors_queued_before_stop_run() -> None:
    ran: list[int] = []
    thread = EventLoopThread()
    loop = thread.start_loop()
    for i in range(1000):
        loop.queue_in_loop(ran.append, i)
    thread.stop(PATIENCE_S)
    assert ran == list(range(1000))


@pytest.mark.provokes_errors("'worker' ended by an exception")
def test_system_exit_in_a_callback_ends_the_thread_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def leave() -> None:
        raise SystemExit(3)

    before = open_descriptors()
    thread = EventLoopThread(name="worker")
    thread.start_loop().queue_in_loop(leave)
    assert thread.join(PATIENCE_S)
    assert "'worker' ended by an exception" in caplog.text
    assert open_descriptors() == before


@pytest.mark.provokes_errors("ZeroDivisionError")
def test_an_exception_in_a_callback_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    with EventLoopThread() as loop:
        loop.queue_in_loop(lambda: 1 / 0)
        assert call_in_loop(loop, lambda: "alive") == "alive"
    assert "ZeroDivisionError" in caplog.text


def test_channels_left_on_the_loop_are_let_go_of_at_its_end() -> None:
    read_end, write_end = os.pipe()
    channels: list[Channel] = []

    def init(loop: EventLoop) -> None:
        channels.append(Channel(loop, read_end))
        channels[0].enable_reading()

    with EventLoopThread(init):
        pass
    assert channels[0].is_none_event
    os.close(read_end)
    os.close(write_end)


def test_a_stopped_threads_loop_can_be_collected() -> None:
    thread = EventLoopThread()
    gone = weakref.ref(thread.start_loop())
    thread.stop(PATIENCE_S)
    del thread
    eventually(lambda: gc.collect() >= 0 and gone() is None, "somebody holds the loop")


def test_started_and_stopped_many_times_nothing_is_left() -> None:
    before = open_descriptors()
    for _ in range(100):
        thread = EventLoopThread()
        thread.start_loop()
        assert thread.stop(PATIENCE_S)
    assert open_descriptors() == before


def test_repr_tells_name_and_state() -> None:
    thread = EventLoopThread(name="worker")
    assert repr(thread) == "<EventLoopThread 'worker' new>"
    thread.start_loop()
    assert repr(thread) == "<EventLoopThread 'worker' running>"
    thread.stop(PATIENCE_S)
    assert repr(thread) == "<EventLoopThread 'worker' ended>"
