"""The memcached example's cache and its commands by themselves: what is counted, forgotten, and left for later."""

from __future__ import annotations

import random
import sys
import tracemalloc
from collections.abc import Callable, Iterable

import pytest

from programs import EXAMPLES

sys.path.append(str(EXAMPLES / "memcached"))
from memcached_commands import Commands
from memcached_store import NEVER, Store

MIB = 1 << 20
ROUNDING_BYTES = 32_768  # tables that are empty take something, too, and so does what the tests note
STORING = (b"set", b"set", b"set", b"add", b"replace", b"append", b"prepend", b"cas")


def put(store: Store, key: bytes, size: int = 1, expires: float = NEVER) -> None:
    """Store a value of so many bytes, which nobody else has."""
    assert store.put(key, b"0", b"%d" % size, b"".join([b"x"] * size), expires)


def long_key(number: int) -> bytes:
    """Return a key of the greatest length; never the same object."""
    return b"".join([b"%d-" % number, b"k" * 250])[:250]


def commands_on(store: Store) -> Commands:
    """Return the commands of a server that has nothing else."""
    store.begin()
    return Commands(store, dict, dict, lambda level: None)


def fill(store: Store) -> list[bytes]:
    """Store items of one size until the first of them has to go, and return their keys in order."""
    keys: list[bytes] = []
    while store.counts["evictions"] == 0:
        keys.append(b"key-%05d" % len(keys))
        put(store, keys[-1])
    return keys


def gone(store: Store, keys: Iterable[bytes]) -> list[bytes]:
    """Return those of *keys* that are not there; to look is to use the others."""
    return [key for key in keys if store.get(key) is None]


def memory_while(store: Store, changes: Iterable[object]) -> list[tuple[int, int]]:
    """Make the changes, and return now and then what items take: as the store says, and in truth."""
    told = []
    tracemalloc.start()
    try:
        for number, _ in enumerate(changes):
            if number % 300 == 299:
                told.append((store.bytes, tracemalloc.get_traced_memory()[0]))
    finally:
        tracemalloc.stop()
    assert store.counts["evictions"] > 0
    assert max(said for said, _ in told) <= store.max_bytes
    return told[3:]


# --- the limit of memory ---


@pytest.mark.parametrize("size", [1, 100, 5000])
@pytest.mark.parametrize("seconds", [0, 1, 100, 10_000])
def test_items_take_no_more_memory_than_the_store_says(size: int, seconds: int) -> None:
    store = Store(2 * MIB)

    def changes() -> Iterable[None]:
        for number in range(12_000 if size < 5000 else 3000):
            yield put(store, b"".join([b"key-", b"%d" % number]), size, 1000.0 + number % seconds if seconds else NEVER)

    for said, taken in memory_while(store, changes()):
        assert 0.5 * said < taken <= said + ROUNDING_BYTES


@pytest.mark.parametrize("seconds", [1, 100, 10_000])
def test_items_that_are_touched_take_no_more_memory_than_the_store_says(seconds: int) -> None:
    store = Store(2 * MIB)

    def changes() -> Iterable[object]:
        for number in range(8000):
            yield put(store, b"key-%d" % number)
        for number in range(8000):
            yield store.touch(b"key-%d" % number, 1000.0 + number % seconds)

    for said, taken in memory_while(store, changes()):
        assert taken <= said + ROUNDING_BYTES


@pytest.mark.parametrize("use", [Store.get, Store.remove])
@pytest.mark.parametrize("count", [6000, 7000, 8000])
def test_the_keys_of_what_has_been_used_or_removed_are_forgotten(
    use: Callable[[Store, bytes], object], count: int
) -> None:
    store = Store(2 * MIB)

    def changes() -> Iterable[object]:
        for number in range(count):
            yield put(store, long_key(number))
        for number in range(count):
            yield use(store, long_key(number))
        for number in range(2000):
            yield put(store, long_key(count + number))

    for _, taken in memory_while(store, changes()):
        assert taken <= store.max_bytes + ROUNDING_BYTES


@pytest.mark.parametrize("seed", range(4))
def test_no_command_passes_the_limit_or_loses_count(seed: int) -> None:
    chance = random.Random(seed)
    store = Store(2 * MIB)
    commands = commands_on(store)
    keys = [b"key-%d" % number for number in range(4000)]

    def a_time() -> bytes:
        return chance.choice([b"0", b"%d" % chance.randrange(1, 2_000_000)])

    def request() -> list[bytes]:
        name = chance.choice([*STORING, b"incr", b"decr", b"touch", b"gat", b"gats", b"get", b"delete"])
        key = chance.choice(keys)
        if name in STORING:
            value = b"%d" % chance.randrange(10**9) if chance.random() < 0.5 else b"x" * chance.randrange(3000)
            line = [name, key, b"0", a_time(), b"%d" % len(value)]
            return [*line, b"%d" % store.changes, value] if name == b"cas" else [*line, value]
        if name in (b"gat", b"gats"):
            return [name, a_time(), *chance.choices(keys, k=10)]
        if name in (b"incr", b"decr"):
            return [name, key, b"%d" % chance.randrange(1 << 64)]
        return [name, key, a_time()] if name == b"touch" else [name, key]

    for _ in range(20_000):
        store.begin()
        commands.answer([request()], [])
        assert store.bytes <= store.max_bytes
    assert store.counts["evictions"] > 0
    for key in keys:
        store.remove(key)
    assert (len(store), store.bytes) == (0, 0)


# --- the order in which items go ---


def test_what_nobody_uses_goes_in_the_order_in_which_it_came() -> None:
    store = Store(2 * MIB)
    keys = fill(store)
    assert gone(store, keys) == keys[:1]
    store = Store(2 * MIB)
    for number in range(3 * len(keys)):
        put(store, b"key-%05d" % number)
    assert gone(store, [b"key-%05d" % number for number in range(3 * len(keys))]) == [
        b"key-%05d" % number for number in range(3 * len(keys) - len(store))
    ]


@pytest.mark.parametrize("use", [Store.get, put, lambda store, key: store.touch(key, 1000.0)])
def test_what_is_used_once_while_half_the_cache_is_filled_anew_stays(use: Callable[[Store, bytes], object]) -> None:
    store = Store(2 * MIB)
    keys = fill(store)
    kept = keys[-1000::50]
    for number in range(10 * len(keys)):
        if number % (len(keys) // 2 - len(kept)) == 0:
            for key in kept:
                use(store, key)
        put(store, b"new-%05d" % number)
    assert gone(store, kept) == []
    assert store.counts["evictions"] > 9 * len(keys)


def test_what_has_been_used_outlives_what_has_not() -> None:
    store = Store(2 * MIB)
    keys = fill(store)[1:]
    aged = keys[: len(keys) // 2]
    used, unused = aged[::2], aged[1::2]
    assert gone(store, used) == []
    for number in range(len(unused) - 10):
        put(store, b"new-%05d" % number)
    left = store.counts["evictions"] - 1
    assert left >= len(unused) - 20
    assert gone(store, keys) == unused[:left]


# --- long answers ---


def test_requests_behind_long_answers_are_left_for_later() -> None:
    store = Store(8 * MIB)
    commands = commands_on(store)
    put(store, b"large", MIB - 100)
    requests = [[b"get", b"large"] for _ in range(16)]
    expected = store.get(b"large")
    assert expected is not None
    turns = []
    while requests:
        answers: list[bytes] = []
        requests = commands.answer(requests, answers)
        turns.append(answers)
        assert sum(map(len, answers)) < 2 * MIB + 200
    assert [answer for answers in turns for answer in answers] == [expected[0]] * 16
    assert len(turns) == 8


@pytest.mark.parametrize("head", [[b"get"], [b"gets"], [b"gat", b"100"], [b"gats", b"100"]])
def test_a_get_of_many_large_values_is_answered_in_parts_that_make_one_answer(head: list[bytes]) -> None:
    store = Store(8 * MIB)
    commands = commands_on(store)
    for key in (b"a", b"b", b"c"):
        put(store, key, MIB // 2)
    cas = {b"a": b" 1", b"b": b" 2", b"c": b" 3"} if head[0].endswith(b"s") else dict.fromkeys((b"a", b"b", b"c"), b"")
    keys = [b"a", b"none", b"b", b"c", b"a", b"a", b"none"]
    left: list[list[bytes]] = [[*head, *keys], [b"get", b"none"]]
    answers: list[bytes] = []
    turns = 0
    while left:
        left = commands.answer(left, answers)
        turns += 1
    parts = [b"VALUE %b 0 %d%b\r\n%b\r\n" % (k, MIB // 2, cas[k], b"x" * (MIB // 2)) for k in keys if k != b"none"]
    assert b"".join(answers) == b"".join(parts) + b"END\r\nEND\r\n"
    assert turns == 3


def test_a_large_value_of_the_past_splits_no_answers() -> None:
    store = Store(8 * MIB)
    commands = commands_on(store)
    put(store, b"large", MIB - 100)
    put(store, b"small", 100)
    answers: list[bytes] = []
    assert commands.answer([[b"get", b"small"]] * 1000, answers) == []
    assert len(answers) == 1000
