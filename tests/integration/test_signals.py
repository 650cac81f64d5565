"""Signals: Ctrl-C and handlers reach a loop in the main thread, whatever it is doing when they arrive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from conftest import PATIENCE_S, call_in_loop
from pymuduo import EventLoop

STORM = """
import os, signal, sys, threading
from pymuduo import EventLoop
handled = 0
acknowledged = threading.Semaphore(0)
def handle(number, frame):
    global handled
    handled += 1
    acknowledged.release()
    if handled == 300:
        loop.quit()
signal.signal(signal.SIGUSR1, handle)
def send():
    for i in range(300):
        for _ in range(i % 7):
            loop.queue_in_loop(int)          # the signal meets the loop awake, asleep and in between
        os.kill(os.getpid(), signal.SIGUSR1)
        if not acknowledged.acquire(timeout=20):
            os._exit(3)                      # the loop slept through a signal
with EventLoop() as loop:
    sender = threading.Thread(target=send)
    sender.start()
    loop.run()
    sender.join()
print("handled", handled)
"""


def test_no_signal_is_slept_through():
    done = subprocess.run([sys.executable, "-c", STORM], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (0, "handled 300\n"), done.stderr


def test_ctrl_c_leaves_run_as_keyboard_interrupt_and_the_loop_can_run_again(loop):
    interrupter = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT))
    loop.queue_in_loop(interrupter.start)
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    interrupter.join(PATIENCE_S)
    loop.quit()
    loop.run()


def test_a_wakeup_descriptor_of_the_program_is_left_alone(loop):
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
    old = signal.set_wakeup_fd(write_fd)
    try:
        seen: list[int] = []

        def look() -> None:
            current = signal.set_wakeup_fd(write_fd)
            seen.append(current)
            loop.quit()

        loop.queue_in_loop(look)
        loop.run()
        assert seen == [write_fd]
        assert signal.set_wakeup_fd(write_fd) == write_fd
    finally:
        signal.set_wakeup_fd(old)
        os.close(read_fd)
        os.close(write_fd)


def test_the_wakeup_descriptor_is_given_back_after_run():
    with EventLoop() as loop:
        loop.quit()
        loop.run()
    assert signal.set_wakeup_fd(-1) == -1


# --- add_signal_handler ---


def test_a_signal_handler_of_the_loop_runs_as_a_functor_of_the_loop(loop):
    called: list[object] = []

    def handle(*args: object) -> None:
        called.append((args, loop.is_in_loop_thread(), loop.is_running))
        loop.quit()

    loop.add_signal_handler(signal.SIGUSR1, handle, "an", "argument")
    sender = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1))
    loop.queue_in_loop(sender.start)
    loop.run()
    sender.join(PATIENCE_S)
    assert called == [(("an", "argument"), True, True)]


def test_the_handler_that_was_there_comes_back():
    before = signal.getsignal(signal.SIGUSR1)
    with EventLoop() as loop:
        loop.add_signal_handler(signal.SIGUSR1, loop.quit)
        loop.add_signal_handler(signal.SIGUSR1, loop.quit)
        assert signal.getsignal(signal.SIGUSR1) is not before
        assert loop.remove_signal_handler(signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) == before
        assert not loop.remove_signal_handler(signal.SIGUSR1)
        loop.add_signal_handler(signal.SIGUSR1, loop.quit)
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_second_handler_takes_the_place_of_the_first(loop):
    called: list[int] = []
    loop.add_signal_handler(signal.SIGUSR1, called.append, 1)
    loop.add_signal_handler(signal.SIGUSR1, called.append, 2)
    os.kill(os.getpid(), signal.SIGUSR1)
    loop.quit()
    loop.run()
    assert called == [2]


def test_signals_that_can_not_be_caught_are_refused(loop):
    with pytest.raises(OSError):
        loop.add_signal_handler(signal.SIGKILL, loop.quit)
    with pytest.raises(ValueError):
        loop.add_signal_handler(12345, loop.quit)
    with pytest.raises(TypeError):
        loop.add_signal_handler(signal.SIGUSR1, "no function")
    assert not loop.remove_signal_handler(signal.SIGKILL)


def test_only_a_loop_of_the_main_thread_hears_of_signals(loop_thread):
    with pytest.raises(RuntimeError, match="main thread"):
        call_in_loop(loop_thread, loop_thread.add_signal_handler, signal.SIGUSR1, loop_thread.quit)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_quit_on_signals_takes_ctrl_c_and_sigterm(loop, number):
    loop.quit_on_signals()
    loop.queue_in_loop(os.kill, os.getpid(), number)
    loop.run()  # or the process is gone, or KeyboardInterrupt comes out


def test_quit_on_signals_takes_the_signals_it_is_given_and_no_other(loop):
    before = signal.getsignal(signal.SIGTERM)
    loop.quit_on_signals(signal.SIGUSR1, signal.SIGUSR2)
    assert signal.getsignal(signal.SIGTERM) == before
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        loop.queue_in_loop(os.kill, os.getpid(), number)
        loop.run()
