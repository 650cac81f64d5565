"""Resolver: names looked up in threads, answers in the loop that asked. The system's resolver is asked for one name."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest

from conftest import PATIENCE_S, call_in_loop, eventually
from pymuduo import EventLoop, EventLoopThread, InetAddress, Resolver
from pymuduo.resolver import Lookup


class FakeResolver(Resolver):
    """Knows some names by heart; a look-up of ``slow`` takes until ``gate`` is set."""

    def __init__(self, max_threads: int = 2) -> None:
        super().__init__(max_threads)
        self.gate = threading.Event()
        self.asked: list[str] = []
        self.threads: set[threading.Thread] = set()

    def look_up(self, host: str, port: int, family: int) -> list[InetAddress]:
        self.asked.append(host)
        self.threads.add(threading.current_thread())
        if host == "slow":
            assert self.gate.wait(PATIENCE_S)
        elif host == "nothing":
            return []
        elif host == "silent":
            raise TimeoutError("no name server answers")
        elif host == "broken":
            raise ZeroDivisionError("a fault of ours")
        return [InetAddress("192.0.2.1", port)]


Answer = tuple[list[InetAddress], OSError | None]


class Answers(list[Answer]):
    """Notes answers, and in which thread they came."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[str] = set()

    def take(self, addresses: list[InetAddress], error: OSError | None) -> None:
        self.threads.add(threading.current_thread().name)
        self.append((addresses, error))


@pytest.fixture
def resolver() -> Iterator[FakeResolver]:
    made = FakeResolver()
    yield made
    made.gate.set()
    made.close()


def ask(loop: EventLoop, resolver: Resolver, *hosts: str) -> Answers:
    """Ask for hosts from the test's thread, and wait for the answers."""
    answers = Answers()
    for host in hosts:
        resolver.resolve(loop, host, 80, answers.take)
    eventually(lambda: len(answers) == len(hosts))
    return answers


def test_a_name_is_answered_in_the_loop_that_asked(loop_thread, resolver):
    answers = ask(loop_thread, resolver, "somewhere")
    assert answers == [([InetAddress("192.0.2.1", 80)], None)]
    assert answers.threads == {"loop"}
    assert all(thread.name.startswith("pymuduo-resolver-") for thread in resolver.threads)


def test_the_systems_resolver_knows_localhost(loop_thread):
    [(addresses, error)] = ask(loop_thread, Resolver.default(), "localhost")
    assert error is None
    assert addresses[0] in (InetAddress.loopback(80), InetAddress.loopback(80, ipv6=True))


def test_the_systems_resolver_does_not_know_what_is_no_name(loop_thread):
    for host in ("nonexistent.invalid", "a" * 64 + ".invalid", "nul\0byte"):
        [(addresses, error)] = ask(loop_thread, Resolver.default(), host)
        assert addresses == []
        assert isinstance(error, OSError)
        assert repr(host)[1:-1] in str(error)


def test_an_address_in_numbers_needs_no_thread_and_is_answered_later(loop, resolver):
    answers = Answers()

    def look() -> None:
        assert len(answers) == 2
        loop.quit()

    resolver.resolve(loop, "127.0.0.1", 80, answers.take)
    resolver.resolve(loop, "::1", 80, answers.take)
    assert answers == []
    loop.queue_in_loop(look)
    loop.run()
    assert answers == [([InetAddress.loopback(80)], None), ([InetAddress.loopback(80, ipv6=True)], None)]
    assert resolver.asked == []


def test_an_address_in_numbers_of_the_wrong_family_is_an_error(loop_thread):
    answers = Answers()
    Resolver.default().resolve(loop_thread, "127.0.0.1", 80, answers.take, family=socket.AF_INET6)
    eventually(lambda: answers)
    assert isinstance(answers[0][1], OSError)


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("nothing", "'nothing' has no address"),
        ("silent", "no name server answers"),
        ("broken", "cannot look up 'broken': ZeroDivisionError"),
    ],
)
def test_whatever_goes_wrong_is_an_os_error_in_the_answer(loop_thread, resolver, host, says):
    [(addresses, error)] = ask(loop_thread, resolver, host)
    assert addresses == []
    assert isinstance(error, OSError)
    assert says in str(error)


def test_the_loop_runs_while_a_name_is_looked_up(loop_thread, resolver):
    answers = Answers()
    resolver.resolve(loop_thread, "slow", 80, answers.take)
    eventually(lambda: resolver.asked)
    ticks: list[int] = []
    timer = loop_thread.run_every(0.001, ticks.append, 1)
    eventually(lambda: len(ticks) >= 5)
    timer.cancel()
    assert answers == []
    resolver.gate.set()
    eventually(lambda: answers)


def test_no_more_threads_than_allowed_and_the_others_wait(loop_thread, resolver):
    answers = Answers()
    for host in ["slow", "slow", "somewhere", "somewhere"]:
        resolver.resolve(loop_thread, host, 80, answers.take)
    eventually(lambda: resolver.asked == ["slow", "slow"])
    call_in_loop(loop_thread, lambda: None)
    assert answers == []
    resolver.gate.set()
    eventually(lambda: len(answers) == 4)
    assert len(resolver.threads) == 2


def test_threads_take_one_question_after_another(loop_thread):
    resolver = FakeResolver(50)
    for _ in range(50):
        ask(loop_thread, resolver, "somewhere")
    assert len(resolver.threads) < 50
    resolver.close()


def test_a_thread_that_is_idle_for_long_ends_and_another_one_takes_its_place(loop_thread, resolver, monkeypatch):
    monkeypatch.setattr("pymuduo.resolver._IDLE_S", 0.01)
    for _ in range(3):
        ask(loop_thread, resolver, "somewhere")
        eventually(lambda: not any(thread.is_alive() for thread in resolver.threads))
    assert len(resolver.threads) == 3


def test_a_cancelled_lookup_is_not_answered_and_one_that_waits_is_not_even_asked(loop_thread, resolver):
    answers = Answers()
    ahead = [resolver.resolve(loop_thread, "slow", 80, answers.take) for _ in range(2)]
    behind = resolver.resolve(loop_thread, "somewhere", 80, answers.take)
    eventually(lambda: len(resolver.asked) == 2)

    def cancel() -> None:
        for lookup in (*ahead, behind, behind):
            lookup.cancel()

    call_in_loop(loop_thread, cancel)
    resolver.gate.set()
    ask(loop_thread, resolver, "elsewhere")
    assert answers == []
    assert resolver.asked == ["slow", "slow", "elsewhere"]


def test_a_lookup_that_was_cancelled_keeps_nothing_alive(loop_thread, resolver):
    answers = Answers()
    asker = weakref.ref(answers)
    lookup = resolver.resolve(loop_thread, "slow", 80, answers.take)
    del answers
    call_in_loop(loop_thread, lookup.cancel)
    gc.collect()
    assert asker() is None


def test_an_answer_that_comes_when_the_loop_is_closed_is_dropped(resolver):
    answers = Answers()
    with EventLoop() as loop:
        resolver.resolve(loop, "slow", 80, answers.take)
    resolver.gate.set()
    resolver.close()
    assert answers == []


def test_close_waits_for_a_thread_that_is_not_needed_any_more_and_has_not_ended_yet(loop_thread):
    leaving, may_end = threading.Event(), threading.Event()

    class HoldUp:
        """Of a thread's own; so it is the last thing that the thread sees to."""

        def __del__(self) -> None:
            leaving.set()
            may_end.wait(PATIENCE_S)

    own = threading.local()

    class Resolving(FakeResolver):
        def look_up(self, host: str, port: int, family: int) -> list[InetAddress]:
            own.hold_up = HoldUp()
            return super().look_up(host, port, family)

    resolver = Resolving(1)
    resolver.resolve(loop_thread, "name", 80, lambda addresses, error: None)
    eventually(lambda: resolver.threads)
    closer = threading.Thread(target=resolver.close)
    closer.start()
    assert leaving.wait(PATIENCE_S)
    opener = threading.Timer(0.2, may_end.set)  # later than a close that does not wait
    opener.start()
    resolver.close()
    assert not any(thread.is_alive() for thread in resolver.threads)
    assert may_end.is_set()
    closer.join(PATIENCE_S)
    opener.join(PATIENCE_S)


def test_close_answers_those_who_wait_with_an_error_and_ends_the_threads(loop_thread, resolver):
    answers = Answers()
    for host in ("slow", "slow", "somewhere"):
        resolver.resolve(loop_thread, host, 80, answers.take)
    eventually(lambda: len(resolver.asked) == 2)
    closer = threading.Thread(target=resolver.close)
    closer.start()
    eventually(lambda: answers)
    assert "'somewhere' was not looked up" in str(answers[0][1])
    resolver.gate.set()
    closer.join(PATIENCE_S)
    eventually(lambda: len(answers) == 3)
    assert [error for _, error in answers[1:]] == [None, None]
    assert not any(thread.is_alive() for thread in resolver.threads)
    with pytest.raises(RuntimeError, match="closed"):
        resolver.resolve(loop_thread, "somewhere", 80, answers.take)
    resolver.close()


def test_many_loops_and_threads_share_a_resolver():
    resolver = FakeResolver(4)
    each = 200
    with EventLoopThread(name="a") as a, EventLoopThread(name="b") as b:
        answers = {a: Answers(), b: Answers()}
        lookups: list[Lookup] = []

        def ask_often(loop: EventLoop) -> None:
            for number in range(each):
                host = "127.0.0.1" if number % 3 == 0 else "nothing" if number % 3 == 1 else "somewhere"
                lookups.append(resolver.resolve(loop, host, number, answers[loop].take))

        askers = [threading.Thread(target=ask_often, args=(loop,)) for loop in (a, b) * 4]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        for loop in (a, b):
            eventually(lambda loop=loop: len(answers[loop]) == 4 * each)
        assert answers[a].threads == {"a"}
        assert answers[b].threads == {"b"}
        assert all(lookup.is_over for lookup in lookups)
        assert len(resolver.threads) <= 4
    resolver.close()


def test_all_threads_get_the_same_default_resolver():
    got: list[Resolver] = []
    threads = [threading.Thread(target=lambda: got.append(Resolver.default())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {id(resolver) for resolver in got} == {id(Resolver.default())}


def run_program(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=3 * PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_forked_child_has_a_resolver_of_its_own():
    assert (
        run_program("""
import os
from pymuduo import EventLoop, Resolver

def ask():
    with EventLoop() as loop:
        def take(addresses, error):
            print(addresses[0].port, error, flush=True)
            loop.quit()
        Resolver.default().resolve(loop, "localhost", 80, take)
        loop.run_after(20, loop.quit)
        loop.run()

ask()
child = os.fork()
if child == 0:
    ask()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
""")
        == "80 None\n80 None"
    )


def test_a_program_that_ends_does_not_wait_for_a_name_server():
    assert (
        run_program("""
import threading
from pymuduo import EventLoop, Resolver

class Silent(Resolver):
    def look_up(self, host, port, family):
        asked.set()
        threading.Event().wait()

asked = threading.Event()
with EventLoop() as loop:
    Silent().resolve(loop, "x", 80, print)
    assert asked.wait(20)
print("done")
""")
        == "done"
    )


def test_numbers_that_make_no_sense_are_refused(loop, resolver):
    with pytest.raises(ValueError, match="max_threads"):
        Resolver(0)
    for host in ("127.0.0.1", "somewhere"):
        with pytest.raises(ValueError, match="70000"):
            resolver.resolve(loop, host, 70000, print)
    assert resolver.asked == []


def test_a_loop_can_go_once_its_lookup_is_answered(resolver):
    def ask_in_a_loop() -> weakref.ref[EventLoop]:
        with EventLoop() as loop:
            resolver.resolve(loop, "somewhere", 80, lambda addresses, error: loop.quit())
            loop.run()
            return weakref.ref(loop)

    gone = ask_in_a_loop()
    eventually(lambda: (gc.collect(), gone() is None)[1])
