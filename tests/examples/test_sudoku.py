"""The sudoku solver, its statistics, its servers, and the programs that load them."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
import re
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import PATIENCE_S, eventually, receive_all, receive_exactly, reset
from programs import EXAMPLES, Program, running

sys.path.append(str(EXAMPLES / "sudoku"))
from sudoku_latency import Histogram, Summary
from sudoku_solver import (
    CELLS,
    NO_SOLUTION,
    TOO_HARD,
    TooHardError,
    answer,
    is_puzzle,
    is_solution,
    solutions,
)
from sudoku_stats import Statistics

KNOWN = b"530070000600195000098000060800060003400803001700020006060000280000419005000080079"
KNOWN_SOLUTION = b"534678912672195348198342567859761423426853791713924856961537284287419635345286179"
HARD = (  # to people, and those at the end to programs that try digits in order
    b"400000805030000000000700000020000060000080400000010000000603070500200000104000000",
    b"800000000003600000070090200050007000000045700000100030001000068008500010090000400",
    b"100007090030020008009600500005300900010080002600004000300000010040000007007000300",
    b"005300000800000020070010500400005300010070006003200080060500009004000030000009700",
    b"000000039000001005003050800008090006070002000100400000009080050020000600400700000",
    b"000000010400000000020000000000050407008000300001090000300400200050100000000806000",
    b"000000000000003085001020000000507000004000100090000000500000073002010000000040009",
)
ENDLESS = b"000005080000601043000000000010500000000106000300000005530000061000000004000000000"  # and without solution
PUZZLES = (EXAMPLES / "sudoku/puzzles.txt").read_bytes().split()

LOOPS = ("server_basic.py", "server_multiloop.py")
SERVERS = (
    *itertools.product(LOOPS, ("--threads=0", "--threads=2")),
    *itertools.product(("server_threadpool.py",), ("--threads=0", "--threads=2", "--processes=2")),
    *itertools.product(("server_hybrid.py", "server_prod.py"), ("--threads=0", "--threads=2")),
)
REQUEST_BYTES = len(b"c0001-00000000:") + CELLS + 2  # as the clients send it


@st.composite
def grids(draw: st.DrawFn) -> bytes:
    """Return a solved grid: one that is easy to write down, with digits, rows and columns exchanged."""
    digits = draw(st.permutations(range(1, 10)))
    lines = [
        [3 * band + line for band in draw(st.permutations(range(3))) for line in draw(st.permutations(range(3)))]
        for _ in range(2)
    ]
    return "".join(str(digits[(3 * r + r // 3 + c) % 9]) for r in lines[0] for c in lines[1]).encode()


def without(grid: bytes, cells: set[int]) -> bytes:
    return bytes(ord("0") if cell in cells else digit for cell, digit in enumerate(grid))


# --- the solver ---


def test_the_solution_of_a_published_puzzle() -> None:
    assert answer(KNOWN) == KNOWN_SOLUTION


@pytest.mark.parametrize("puzzle", HARD)
def test_hard_puzzles_have_one_solution_and_it_is_found(puzzle: bytes) -> None:
    (solution,) = solutions(puzzle)
    assert is_solution(puzzle, solution)
    assert answer(puzzle) == solution


def test_the_puzzles_at_hand_have_one_solution_each() -> None:
    assert len(set(PUZZLES)) == len(PUZZLES) == 250
    for puzzle in PUZZLES:
        (solution,) = solutions(puzzle)
        assert is_solution(puzzle, solution)


@settings(max_examples=100)
@given(grids(), st.sets(st.integers(0, CELLS - 1)))
def test_what_is_left_of_a_grid_is_solved_by_a_grid_that_has_it(grid: bytes, taken: set[int]) -> None:
    puzzle = without(grid, taken)
    solution = next(solutions(puzzle, 100_000))  # of what is nearly empty, one in thousands takes so long
    assert is_solution(puzzle, solution)
    if len(taken) <= 3:  # too few for two digits to change places
        assert solution == grid


@settings(max_examples=60)
@given(st.sampled_from(PUZZLES), st.integers(0, CELLS - 1), st.integers(1, 8))
def test_a_digit_that_contradicts_the_only_solution_leaves_none(puzzle: bytes, cell: int, more: int) -> None:
    right = answer(puzzle)
    wrong = ord("1") + (right[cell] - ord("1") + more) % 9
    spoiled = bytearray(puzzle)
    if spoiled[cell] == ord("0"):
        spoiled[cell] = wrong
        assert answer(bytes(spoiled)) == NO_SOLUTION
        assert list(solutions(bytes(spoiled))) == []


@settings(max_examples=30)
@given(grids(), st.integers(1, 9))
def test_all_solutions_are_found_and_each_once(grid: bytes, digit: int) -> None:
    """Two digits taken away altogether may change places, and nothing else follows from that."""
    other = digit % 9 + 1
    taken = {cell for cell, here in enumerate(grid) if here in (digit + ord("0"), other + ord("0"))}
    puzzle = without(grid, taken)
    found = list(solutions(puzzle, 10_000))
    assert len(found) == len(set(found)) >= 2
    assert grid in found
    exchanged = grid.translate(bytes.maketrans(b"%d%d" % (digit, other), b"%d%d" % (other, digit)))
    assert exchanged in found
    assert all(is_solution(puzzle, solution) for solution in found)


@pytest.mark.parametrize(
    "puzzle",
    [
        b"11" + b"0" * 79,
        b"1" + b"0" * 8 + b"1" + b"0" * 71,
        b"1" + b"0" * 9 + b"1" + b"0" * 70,
        b"123456780" + b"000000009" + b"0" * 63,  # the 9 is wanted where its column has one
        KNOWN_SOLUTION[:-1] + b"8",
    ],
)
def test_puzzles_that_break_the_rules_have_no_solution(puzzle: bytes) -> None:
    assert answer(puzzle) == NO_SOLUTION


def test_the_solver_gives_up_after_so_many_guesses() -> None:
    assert answer(ENDLESS) == TOO_HARD
    with pytest.raises(TooHardError):
        list(solutions(b"0" * CELLS))  # more than anyone can count
    assert is_solution(b"0" * CELLS, answer(b"0" * CELLS))


@pytest.mark.parametrize("rubbish", [b"", b"0" * 80, b"0" * 82, b"." * 81, b" " * 81, b"\xb2" * 81])
def test_what_is_no_puzzle_is_refused(rubbish: bytes) -> None:
    assert not is_puzzle(rubbish)
    with pytest.raises(ValueError, match="81 digits"):
        next(solutions(rubbish))


@given(grids(), st.integers(0, CELLS - 1), st.sampled_from(b"0123456789"))
def test_a_grid_with_another_digit_is_no_solution(grid: bytes, cell: int, digit: int) -> None:
    changed = bytearray(grid)
    changed[cell] = digit
    assert is_solution(b"0" * CELLS, bytes(changed)) == (bytes(changed) == grid)
    assert is_solution(without(grid, {cell}), bytes(changed)) == (bytes(changed) == grid)


def test_a_solution_of_another_puzzle_is_none_of_this() -> None:
    assert is_solution(KNOWN, KNOWN_SOLUTION)
    assert not is_solution(HARD[0], KNOWN_SOLUTION)
    assert not is_solution(KNOWN, KNOWN_SOLUTION[:-1])


# --- latencies and statistics ---


def test_a_summary_is_in_milliseconds() -> None:
    summary = Summary.of([number / 1000 for number in range(101, 0, -1)])
    assert summary == pytest.approx((1, 51, 51, 91, 100, 101))
    assert str(summary) == "min 1.000 avg 51.000 p50 51.000 p90 91.000 p99 100.000 max 101.000 ms"
    assert Summary.of([0.002]) == pytest.approx((2, 2, 2, 2, 2, 2))
    assert Summary.of([]) == (0, 0, 0, 0, 0, 0)


@given(st.lists(st.integers(0, 1 << 31), min_size=1), st.sampled_from([1, 50, 90, 99, 100]))
def test_a_percentile_of_a_histogram_is_too_high_by_an_eighth_at_most(latencies_us: list[int], percent: int) -> None:
    histogram = Histogram()
    for us in latencies_us:
        histogram.add((us + 0.5) / 1e6)
    exact = sorted(latencies_us)[math.ceil(len(latencies_us) * percent / 100) - 1]
    assert exact <= histogram.percentile_us(percent) <= exact + exact // 8


@given(st.lists(st.floats(-1, 1e5)), st.lists(st.floats(-1, 1e5)))
def test_merged_histograms_are_the_histogram_of_all(some: list[float], others: list[float]) -> None:
    one, other, both = Histogram(), Histogram(), Histogram()
    for histogram, latencies in ((one, some), (other, others), (both, some + others)):
        for latency in latencies:
            histogram.add(latency)
    one.merge(other)
    assert one.count == both.count == len(some) + len(others)
    assert list(one.lines()) == list(both.lines())
    assert [one.percentile_us(p) for p in range(101)] == [both.percentile_us(p) for p in range(101)]


def test_the_picture_of_a_histogram() -> None:
    histogram = Histogram()
    assert list(histogram.lines()) == []
    assert histogram.percentile_us(50) == 0
    for ms in (1.5, 1.6, 1.7, 1.8, 5):
        histogram.add(ms / 1e3)
    assert [line.split() for line in histogram.lines()] == [
        ["<", "2.048", "ms", "4", "#" * 50],
        ["<", "4.096", "ms", "0"],
        ["<", "8.192", "ms", "1", "#" * 13],
    ]


def answered(stats: Statistics, *moments: float) -> None:
    for now in moments:
        stats.add_request(now)
        stats.add_answer(now, 0.25, True)


def solved_in_minute_and_second(stats: Statistics, now: float) -> tuple[int, int]:
    report = stats.report(now)
    assert report["minute_requests"] == report["minute_solved"]
    return report["minute_solved"], report["second_solved"]


def read_in_minute_and_second(stats: Statistics, now: float) -> tuple[int, int]:
    report = stats.report(now)
    return report["minute_requests"], report["second_requests"]


def test_what_happens_in_one_second_is_told_in_the_next() -> None:
    stats = Statistics()
    for number in range(100):
        now = 1000 + number / 100
        stats.add_request(now)
        stats.add_answer(now, number / 1e6, number % 3 != 0)
    assert read_in_minute_and_second(stats, 1000.99) == (0, 0)  # it has not passed
    assert read_in_minute_and_second(stats, 1001.0) == (100, 100)
    report = stats.report(1001.5)
    assert report["total_requests"] == report["minute_requests"] == report["second_requests"] == 100
    assert report["second_solved"] == 66
    assert report["second_unsolved"] == 34
    assert 49 <= report["second_p50_us"] <= 55
    assert 99 <= report["second_max_us"] <= 111
    assert read_in_minute_and_second(stats, 1002.0) == (100, 0)
    assert read_in_minute_and_second(stats, 1060.9) == (100, 0)
    assert read_in_minute_and_second(stats, 1061.0) == (0, 0)


def test_second_follows_second() -> None:
    stats = Statistics()
    for number in range(10_000):
        answered(stats, 1000 + number * 0.03125)  # 32 in each second
    assert solved_in_minute_and_second(stats, 1312.0) == (60 * 32, 32)
    assert stats.report(1312.0)["total_solved"] == 10_000


@pytest.mark.parametrize(("ahead", "minute"), [(5, 2), (59, 2), (60, 1), (61, 1), (600, 1)])
def test_a_jump_ahead_leaves_what_is_within_a_minute(ahead: int, minute: int) -> None:
    stats = Statistics()
    answered(stats, 1000, 1000 + ahead)
    assert solved_in_minute_and_second(stats, 1001 + ahead) == (minute, 1)
    assert stats.report(1001 + ahead)["total_solved"] == 2


@pytest.mark.parametrize(("back", "minute"), [(3, 3), (60, 2), (61, 2), (500, 2)])
def test_who_comes_late_counts_in_its_own_second_if_there_still_is_one(back: int, minute: int) -> None:
    stats = Statistics()
    answered(stats, 2000, 2010, 2010 - back)
    assert solved_in_minute_and_second(stats, 2011) == (minute, 1)
    assert stats.report(2011)["total_solved"] == 3


@settings(max_examples=30)
@given(st.lists(st.integers(-100, 100), max_size=200))
def test_any_jumps_are_survived_and_the_totals_are_exact(jumps: list[int]) -> None:
    stats = Statistics()
    moments = list(itertools.accumulate(jumps, initial=100_000))
    answered(stats, *moments)
    assert stats.report(moments[-1])["total_solved"] == len(moments)
    minute, second = solved_in_minute_and_second(stats, max(moments) + 1)
    assert 1 <= second <= minute <= sum(moment > max(moments) - 60 for moment in moments)
    stats.reset()
    assert set(stats.report(moments[-1]).values()) == {0}


def test_counts_from_many_threads_add_up() -> None:
    stats = Statistics()

    def count() -> None:
        for _ in range(1000):
            answered(stats, 1000.0)
            stats.add_dropped(1000.0)
            stats.add_bad(1000.0)
            stats.add_abandoned(1000.0)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    report = stats.report(1001.0)
    for name in ("requests", "solved", "dropped", "bad", "abandoned"):
        assert report[f"total_{name}"] == report[f"second_{name}"] == 4000


# --- the servers ---


@contextlib.contextmanager
def serving(path: str, *arguments: str) -> Iterator[Program]:
    with running(f"sudoku/{path}", *arguments) as program:
        yield program


@pytest.fixture(scope="module", params=SERVERS, ids=" ".join)
def server(request: pytest.FixtureRequest) -> Iterator[Program]:
    """Return one server after the other; each is there for all tests that want one, and ends well after them."""
    with serving(*request.param) as program:
        yield program


def receive_lines(peer: socket.socket, count: int) -> list[bytes]:
    """Receive so many lines and not a byte more."""
    received = b""
    while received.count(b"\r\n") < count:
        chunk = peer.recv(1 << 16)
        assert chunk, received
        received += chunk
    *lines, rest = received.split(b"\r\n")
    assert rest == b""
    assert len(lines) == count
    return lines


def ask(peer: socket.socket, *requests: bytes) -> list[bytes]:
    """Send lines and receive as many."""
    peer.sendall(b"".join(request + b"\r\n" for request in requests))
    return receive_lines(peer, len(requests))


def with_ids(puzzles: Sequence[bytes]) -> bytes:
    """Return requests whose ids are the puzzles' numbers."""
    return b"".join(b"%d:%s\r\n" % item for item in enumerate(puzzles))


def by_id(lines: list[bytes]) -> dict[bytes, bytes]:
    """Return the answers by their ids, in the order in which they came."""
    answers: dict[bytes, bytes] = dict(line.split(b":") for line in lines)
    assert len(answers) == len(lines), "an id came twice"
    return answers


def assert_all_solved(puzzles: Sequence[bytes], lines: list[bytes]) -> None:
    answers = by_id(lines)
    assert answers.keys() == {b"%d" % number for number in range(len(puzzles))}
    assert all(is_solution(puzzle, answers[b"%d" % number]) for number, puzzle in enumerate(puzzles))


def run_client(server: Program, path: str, *arguments: str) -> Program:
    return Program(f"sudoku/{path}", "--port", str(server.port), *arguments)


def solves_in_loops(server: Program) -> bool:
    return any(path in str(server.process.args) for path in LOOPS)


def test_each_answer_has_the_id_of_its_request(server: Program) -> None:
    with server.connect() as peer:
        assert ask(peer, KNOWN) == [KNOWN_SOLUTION]
        assert ask(peer, b"0:11" + b"0" * 79) == [b"0:NoSolution"]
        assert ask(peer, b":" + KNOWN) == [b":" + KNOWN_SOLUTION]
        puzzles = (*HARD, *PUZZLES[:20])
        peer.sendall(with_ids(puzzles))
        lines = receive_lines(peer, len(puzzles))
        assert_all_solved(puzzles, lines)
        if solves_in_loops(server):
            assert [int(line.split(b":")[0]) for line in lines] == list(range(len(puzzles)))


def test_every_client_is_satisfied(server: Program, tmp_path: Path) -> None:
    file = tmp_path / "puzzles"
    file.write_bytes(b"\n".join(PUZZLES[:40]))
    batch = run_client(server, "batch.py", str(file), "--connections", "2", "--batches", "5")
    pipeline = run_client(server, "pipeline.py", "--connections", "3", "--pipeline", "4", "--seconds", "0.5")
    loadtest = run_client(server, "loadtest.py", "--connections", "3", "--rate", "500", "--seconds", "0.1")
    with batch, pipeline, loadtest:
        for client in (batch, pipeline, loadtest):
            assert client.wait() == 0, client.err
            assert client.err == ""
    assert batch.out[0] == "80 solved"
    assert re.fullmatch(r"80 puzzles in [\d.]+ s, [\d.]+ us each", batch.out[1])
    in_all = re.fullmatch(r"in all (\d+), unsolved 0, \d+/s min .* p99 .* ms", pipeline.out[-1])
    assert in_all
    assert int(in_all[1]) > 0
    assert loadtest.out[-2] == "50 sent, 50 solved, 0 unanswered"
    assert re.fullmatch(r"in all 50 min .* p50 .* p90 .* p99 .* max .* ms", loadtest.out[-1])
    assert sum(int(line.split()[3]) for line in loadtest.out if line.startswith("<")) == 50


def test_rubbish_is_told_and_ends_the_connection(server: Program) -> None:
    for rubbish, prefix in (
        (b"hello\r\n", b""),
        (b"7:hello\r\n", b"7:"),
        (b"7:" + KNOWN[:-1] + b"\r\n", b"7:"),
        (b"7:" + KNOWN[:-1] + b".\r\n", b"7:"),
        (b"7:8:" + KNOWN + b"\r\n", b"7:"),
        (b"\r\n" * 1000, b""),
    ):
        with server.connect() as peer:
            peer.sendall(b"1:" + KNOWN + b"\r\n" + rubbish + b"2:" + KNOWN + b"\r\n")
            lines = receive_all(peer).split(b"\r\n")
        assert sorted(lines) == sorted([b"", b"1:" + KNOWN_SOLUTION, prefix + b"BadRequest"])


def test_a_line_without_end_is_cut_off(server: Program) -> None:
    with server.connect() as peer:
        assert ask(peer, b"x" * 46 + b":" + KNOWN) == [b"x" * 46 + b":" + KNOWN_SOLUTION]
        peer.sendall(b"x" * 130)
        assert receive_all(peer) == b"BadRequest\r\n"
        name = "{}:{}".format(*peer.getsockname())
    server.wait_for_log(f"{name} is up")
    server.wait_for_log(f"{name} is refused: .*128 bytes")
    server.wait_for_log(f"{name} is down")


def test_who_says_that_no_more_comes_still_gets_every_answer(server: Program) -> None:
    with server.connect() as peer:
        peer.sendall(with_ids(PUZZLES))
        peer.shutdown(socket.SHUT_WR)
        assert_all_solved(PUZZLES, receive_all(peer).split(b"\r\n")[:-1])


def test_who_leaves_with_requests_in_flight_harms_nobody(server: Program) -> None:
    with server.connect() as staying:
        for leave in (socket.socket.close, reset):
            with server.connect() as peer:
                peer.sendall(with_ids(PUZZLES))
                peer.recv(1)
                leave(peer)
            assert ask(staying, b"1:" + KNOWN) == [b"1:" + KNOWN_SOLUTION]


def test_one_who_never_reads_neither_fills_the_memory_nor_keeps_the_others_waiting(server: Program) -> None:
    piece = with_ids(PUZZLES) * 100
    with server.connect() as flood, server.connect() as other:
        flood.settimeout(0.05)  # so long the server does not take a byte
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 << 20:
                sent += flood.send(piece)
        assert sent < 64 << 20
        assert ask(other, b"1:" + KNOWN) == [b"1:" + KNOWN_SOLUTION]


def test_a_multiloop_server_tells_what_each_loop_does() -> None:
    with serving("server_multiloop.py", "--interval", "0.05") as program:
        with program.connect() as one, program.connect() as other:
            for _ in range(3):
                ask(one, KNOWN)
                ask(other, KNOWN)
            eventually(lambda: told(program) == [3, 3])


def told(program: Program) -> list[int]:
    counts = re.findall(r"begun by each loop: (\d+) (\d+)", program.err)
    return [sum(int(count) for count in loop) for loop in zip(*counts, strict=True)]


def test_ctrl_c_ends_a_server_with_processes_and_requests_in_work() -> None:
    with serving("server_threadpool.py", "--processes", "2") as program, program.connect() as peer:
        peer.sendall(with_ids([ENDLESS] * 200))
        peer.recv(1)
        os.killpg(program.process.pid, signal.SIGINT)  # as a terminal does: to all of them
        assert program.wait() == 0, program.err
        assert "Traceback" not in program.err


def session_of(program: Program) -> dict[int, int]:
    """Return the processes of the program's session that have not ended, and the parent of each."""
    processes = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == program.process.pid and fields[0] != "Z":
                processes[int(entry.name)] = int(fields[1])
    return processes


def test_the_processes_of_a_server_that_is_killed_end_as_well() -> None:
    with Program("sudoku/server_hybrid.py", "--port", "0", "--processes", "2") as program:
        assert program.port
        assert len(session_of(program)) >= 3
        program.process.kill()
        eventually(lambda: session_of(program).keys() <= {program.process.pid})


def test_a_server_whose_process_was_killed_ends_the_connections_and_lives() -> None:
    with Program("sudoku/server_hybrid.py", "--port", "0", "--processes", "1") as program:
        with program.connect() as peer:
            assert ask(peer, KNOWN) == [KNOWN_SOLUTION]
            children = session_of(program)
            (worker,) = (pid for pid, parent in children.items() if children.get(parent, 0) == program.process.pid)
            os.kill(worker, signal.SIGKILL)
            peer.sendall(KNOWN + b"\r\n")
            with contextlib.suppress(ConnectionError):
                assert peer.recv(1) == b""
        program.wait_for_log("not solved: BrokenProcessPool")
        with program.connect() as peer:
            peer.sendall(KNOWN + b"\r\n")
            with contextlib.suppress(ConnectionError):
                assert peer.recv(1) == b""
        assert program.end(signal.SIGTERM) == 0
        assert "Traceback" not in program.err


# --- the server for production ---


def connect_for_statistics(program: Program) -> socket.socket:
    port = int(program.wait_for_log(r"statistics listens on 127\.0\.0\.1:(\d+),").group(1))
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)


def statistics_of(program: Program) -> dict[str, int]:
    with connect_for_statistics(program) as peer:
        peer.sendall(b"stats\r\n")
        received = b""
        while not received.endswith(b"END\r\n"):
            chunk = peer.recv(1 << 16)
            assert chunk, received
            received += chunk
    lines = received.decode().split("\r\n")[:-2]
    return {name: int(value) for name, value in (line.split(" ") for line in lines)}


def all_accounted_for(program: Program, requests: int) -> dict[str, int]:
    """Return the statistics if there were so many requests and none is in work, else an empty dict."""
    stats = statistics_of(program)
    ended = sum(stats[f"total_{name}"] for name in ("solved", "unsolved", "dropped", "abandoned"))
    return stats if stats["total_requests"] == ended == requests else {}


@pytest.mark.parametrize("threads", ["0", "2"])
def test_overload_is_told_at_once_and_the_server_stays_responsive(threads: str) -> None:
    with serving("server_prod.py", "--threads", threads, "--workers", "1", "--max-queue", "2") as program:
        with program.connect() as peer:
            peer.sendall(with_ids([ENDLESS] * 99))
            assert statistics_of(program)["total_bad"] == 0  # it answers while all places are taken
            results = Counter(by_id(receive_lines(peer, 99)).values())
            assert results.keys() == {b"ServerTooBusy", b"TooHard"}
            assert results[b"TooHard"] >= 2
            assert ask(peer, b"99:" + KNOWN) == [b"99:" + KNOWN_SOLUTION]  # those that are answered left their places
        stats = eventually(lambda: all_accounted_for(program, 100))
        assert stats["total_dropped"] == results[b"ServerTooBusy"]
        assert stats["total_unsolved"] == results[b"TooHard"]
        assert stats["total_solved"] == 1
        assert stats["total_p50_us"] > 0


def test_one_client_alone_waits_for_its_places_instead_of_being_refused() -> None:
    with serving("server_prod.py", "--max-in-work", "4", "--max-queue", "8") as program:
        with program.connect() as one, program.connect() as other:
            one.sendall(with_ids(PUZZLES))
            assert ask(other, KNOWN) == [KNOWN_SOLUTION]  # there is a place for it
            assert_all_solved(PUZZLES, receive_lines(one, len(PUZZLES)))
        assert eventually(lambda: all_accounted_for(program, 251))["total_dropped"] == 0


@pytest.mark.parametrize("workers", ["--workers", "--processes"])
def test_what_nobody_waits_for_any_more_is_accounted_for_and_leaves_its_place(workers: str) -> None:
    with serving("server_prod.py", workers, "1", "--max-queue", "8", "--max-in-work", "8") as program:
        for requests in (8, 16):
            with program.connect() as peer:
                peer.sendall(with_ids([ENDLESS] * 8))
                eventually(lambda n=requests: statistics_of(program)["total_requests"] == n)
                reset(peer)
            eventually(lambda n=requests: all_accounted_for(program, n))
        with program.connect() as peer:
            peer.sendall(with_ids(PUZZLES[:8]))
            assert_all_solved(PUZZLES[:8], receive_lines(peer, 8))
        stats = eventually(lambda: all_accounted_for(program, 24))
        assert stats["total_solved"] == 8
        assert stats["total_dropped"] == 0


def test_statistics_begin_anew_and_rubbish_gets_an_answer() -> None:
    with serving("server_prod.py") as program:
        with program.connect() as peer:
            ask(peer, KNOWN)
            peer.sendall(b"hello\r\n")
            assert receive_all(peer) == b"BadRequest\r\n"
        stats = statistics_of(program)
        assert (stats["total_requests"], stats["total_solved"], stats["total_bad"]) == (1, 1, 1)
        with connect_for_statistics(program) as peer:
            peer.sendall(b"what\r\nreset\n")
            assert receive_lines(peer, 2) == [b"there are stats and reset", b"OK"]
        assert set(statistics_of(program).values()) == {0}


# --- the clients ---


def test_batch_solves_by_itself_what_a_file_has(tmp_path: Path) -> None:
    file = tmp_path / "puzzles"
    file.write_bytes(b"\n".join([b"# a comment", *HARD, KNOWN, b""]))
    with Program("sudoku/batch.py", str(file), "--local") as client:
        assert client.wait() == 0, client.err
        assert client.out[0] == "8 solved"
        assert client.out[1].startswith("8 puzzles in ")


def test_batch_tells_what_could_not_be_solved(tmp_path: Path) -> None:
    file = tmp_path / "puzzles"
    file.write_bytes(b"\n".join([ENDLESS, KNOWN, b"55" + KNOWN[2:]]))
    with serving("server_basic.py") as program, run_client(program, "batch.py", str(file)) as client:
        assert client.wait() == 0, client.err
        assert client.out[0] == "1 NoSolution, 1 TooHard, 1 solved"


@pytest.mark.parametrize("content", [None, b"hello\n"])
def test_a_file_without_puzzles_is_one_line_and_code_1(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "puzzles"
    if content is not None:
        file.write_bytes(content)
    with Program("sudoku/pipeline.py", str(file)) as client:
        assert client.wait() == 1
        assert client.err.count("\n") == 0
        assert str(file) in client.err


@pytest.mark.parametrize("path", ["batch.py", "pipeline.py", "loadtest.py"])
def test_no_server_is_one_line_and_code_1(path: str) -> None:
    with socket.socket() as bound:  # bound, but not listening: connecting is refused
        bound.bind(("127.0.0.1", 0))
        with Program(f"sudoku/{path}", "--port", str(bound.getsockname()[1]), "--connections", "3") as client:
            assert client.wait() == 1
            assert client.err.count("\n") == 0
            assert "can't connect" in client.err


@contextlib.contextmanager
def played_against(path: str, *arguments: str) -> Iterator[tuple[Program, socket.socket]]:
    """Run a client whose server is the test."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE_S)
        with Program(f"sudoku/{path}", "--port", str(listening.getsockname()[1]), *arguments) as client:
            peer, _ = listening.accept()
            with peer:
                peer.settimeout(PATIENCE_S)
                yield client, peer


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"c0001-00000000:" + KNOWN_SOLUTION + b"\r\n", "a wrong answer"),
        (b"c0001-00000000:ServerTooLazy\r\n", "a wrong answer"),
        (b"c0001-99999999:NoSolution\r\n", "an answer to no question"),
        (b"NoSolution\r\n", "an answer to no question"),
        (b"", "the server has left"),
    ],
)
def test_a_server_that_breaks_the_rules_ends_its_client(said: bytes, error: str) -> None:
    with played_against("pipeline.py", "--seconds", "600") as (client, peer):
        receive_exactly(peer, REQUEST_BYTES)
        peer.sendall(said)
        peer.shutdown(socket.SHUT_WR)
        assert client.wait() == 1
        assert error in client.err
        assert "Traceback" not in client.err


def answer_to(request: bytes) -> bytes:
    prefix, puzzle = request.split(b":")
    return b"%s:%s\r\n" % (prefix, answer(puzzle.strip()))


@pytest.mark.parametrize(
    ("path", "arguments"),
    [("batch.py", ["--batches", "250"]), ("pipeline.py", ["--seconds", "600"]), ("loadtest.py", ["--seconds", "600"])],
)
def test_ctrl_c_ends_a_client_early_with_its_result(path: str, arguments: list[str]) -> None:
    with played_against(path, *arguments) as (client, peer):
        peer.sendall(answer_to(receive_exactly(peer, REQUEST_BYTES)))
        receive_exactly(peer, REQUEST_BYTES)  # the second
        client.process.send_signal(signal.SIGINT)
        assert client.wait() == 0, client.err
        assert client.err == ""
        assert re.search(r"\b1 (solved|puzzles)\b|\bin all 1\b", "\n".join(client.out))


def test_a_stall_is_in_the_latencies_of_all_that_were_due_in_it() -> None:
    """Coordinated omission would show one slow answer."""
    with played_against("loadtest.py", "--rate", "200", "--seconds", "0.5") as (client, peer):
        requests = receive_exactly(peer, 100 * REQUEST_BYTES).splitlines()  # half a second's worth, and no answer yet
        random.Random(1).shuffle(requests)
        peer.sendall(b"".join(map(answer_to, requests)))
        assert client.wait() == 0, client.err
    assert client.out[-2] == "100 sent, 100 solved, 0 unanswered"
    p50, highest = (float(client.out[-1].split(f" {name} ")[1].split()[0]) for name in ("p50", "max"))
    assert highest >= 490
    assert p50 >= 240
