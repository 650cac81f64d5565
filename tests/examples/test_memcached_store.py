"""The memcached example's cache by itself: what it counts, what it forgets, and in which order."""

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


def fill(store: Store) -> list[bytes]:
    """Store items of one size until the first of them has to go, and return their keys in order."""
    keys = []
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
        for number in range(12_000):
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
    commands = Commands(store, dict, dict, lambda level: None)
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
