"""memcached's text protocol: the words of a request in, the bytes of an answer out, as memcached 1.6 gives them.

The protocol is older than its rules, and clients rely on both: which mistake is an ``ERROR`` and which a
``CLIENT_ERROR``, that ``noreply`` silences errors too (but not a wrong number of words), that ``decr`` leaves blanks
behind a number that has become shorter. Where we differ from memcached, it is on purpose:

- When the line of a storage command is wrong, its block is dropped. memcached executes the block as commands.
- Keys have no control characters, flags 32 bits; memcached's documents say so, and it does not look.
- Expiry times beyond 2038 are what they say.

One thing is not: a block that does not end where it should is missing from the words; and when the line has one word
more than it needs, just as long as the block should be, nobody can know that this is not the block.

Nothing here knows of connections or loops; whoever calls ``answer`` holds the store's lock.
"""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Callable, Iterable
from typing import TypeAlias

from memcached_lines import (
    BAD_LINE,
    ERROR,
    MAX_EXPTIME,
    MAX_U32,
    MAX_U64,
    MIN_EXPTIME,
    NOREPLY,
    SIZE_AT,
    Line,
    RefusedError,
    Words,
    is_too_large,
    number_of,
    storage_line,
    unless_silent,
)
from memcached_store import END, MAX_KEY_BYTES, NEVER, Store, take_apart, with_cas

VERSION = b"1.6.18-pymuduo"  # clients look at the number to know what they may ask for
STORAGE = dict.fromkeys((b"set", b"add", b"replace", b"append", b"prepend", b"cas"), SIZE_AT)
"""The commands that a block follows, and where its size stands."""

_LONG_BYTES = 1 << 20  # of answers: the rest can wait until the client has read these
_SMALL_BYTES = 512  # not counted, which is 2 % of a get; the requests of one read ask for no more than 5 MB of such
_COUNTS = (
    *("get_misses", "touch_hits", "touch_misses", "delete_hits", "delete_misses", "incr_hits", "incr_misses"),
    *("decr_hits", "decr_misses", "cas_hits", "cas_misses", "cas_badval"),
)
_COUNTER = re.compile(rb"[\t-\r ]*(?:\+?([0-9]+)|-0+)(?=[\0\t-\r ]|$)")  # what C's strtoull takes for a number
_COUNTER_BYTES = 64  # of a value that are looked at
_SIZES = {b"%d" % size: size for size in range(4097)}  # looked up, which saves a seventh of a set

_STORED, _NOT_STORED, _EXISTS, _NOT_FOUND = b"STORED\r\n", b"NOT_STORED\r\n", b"EXISTS\r\n", b"NOT_FOUND\r\n"
_OK, _DELETED, _TOUCHED, _RESET = b"OK\r\n", b"DELETED\r\n", b"TOUCHED\r\n", b"RESET\r\n"
_BAD_EXPTIME = b"CLIENT_ERROR invalid exptime argument\r\n"
_BAD_DELTA = b"CLIENT_ERROR invalid numeric delta argument\r\n"
_BAD_DELETE = b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n"
_NO_NUMBER = b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"

Report: TypeAlias = Callable[[], dict[str, object]]


class QuitError(Exception):
    """The client has said that it leaves."""


class _UnfinishedError(Exception):
    """A request that is answered in part because the answer is long, and what is left of it."""

    def __init__(self, answer: bytes, left: Words) -> None:
        super().__init__(left)
        self.answer = answer
        self.left = left


class Commands:
    """Carries out requests on a store.

    Args:
        server_stats: what ``stats`` tells beside the store's counts. settings: what ``stats settings`` tells.
        set_verbosity: called with the level that a client asks for.
    """

    def __init__(
        self, store: Store, server_stats: Report, settings: Report, set_verbosity: Callable[[int], object]
    ) -> None:
        self._store = store
        self._server_stats = server_stats
        self._settings = settings
        self._set_verbosity = set_verbosity
        self._began = time.monotonic()
        self._changes_before = 0  # the last reset of the counts
        self._handlers: dict[bytes, Callable[[Words], bytes]] = {
            b"get": self._get,
            b"gets": self._gets,
            b"gat": self._gat,
            b"gats": self._gat,
            b"set": self._set,
            b"add": self._add,
            b"replace": self._replace,
            b"append": self._append,
            b"prepend": self._append,
            b"cas": self._cas,
            b"incr": self._arithmetic,
            b"decr": self._arithmetic,
            b"delete": self._delete,
            b"touch": self._touch,
            b"flush_all": self._flush_all,
            b"stats": self._stats,
            b"version": self._version,
            b"verbosity": self._verbosity,
            b"quit": self._quit,
        }

    def answer(self, requests: Iterable[Words], answers: list[bytes]) -> list[Words]:
        """Append the answer to each request, ``b""`` to one that wants none, as long as all of them are not long.

        Returns:
            The requests that are left; the first may be for the rest of the keys of one that was answered in part.

        Raises:
            QuitError: that was the last request.
        """
        handlers = self._handlers
        size = 0
        rest = iter(requests)
        for words in rest:
            try:
                handler = handlers.get(words[0]) if words else None
                answer = ERROR if handler is None else handler(words)
            except RefusedError as e:
                answer = e.answer
            except _UnfinishedError as e:
                answers.append(e.answer)
                return [e.left, *rest]
            answers.append(answer)
            if len(answer) > _SMALL_BYTES:
                size += len(answer)
                if size >= _LONG_BYTES:
                    return list(rest)
        return []

    # --- retrieval ---

    def _get(self, words: Words) -> bytes:
        if len(words) == 2:  # the usual one
            store = self._store
            item = store.get(words[1])
            if item is not None:
                store.hits += 1
                return item[0]
        return self._get_many(words, 1)

    def _gets(self, words: Words) -> bytes:
        return self._get_many(words, 1, has_cas=True)

    def _gat(self, words: Words) -> bytes:
        if len(words) < 2:
            return ERROR
        exptime = number_of(words[1], MIN_EXPTIME, MAX_EXPTIME)
        if exptime is None:
            return _BAD_EXPTIME
        return self._get_many(words, 2, has_cas=words[0] == b"gats", expires=self._store.expiry(exptime))

    def _get_many(self, words: Words, first: int, *, has_cas: bool = False, expires: float | None = None) -> bytes:
        if len(words) < 2:
            return ERROR
        if max(map(len, words[first:]), default=0) > MAX_KEY_BYTES:
            return BAD_LINE
        store = self._store
        found = []
        size = 0
        keys = iter(words[first:])
        for key in keys:
            item = store.get(key) if expires is None else store.touch(key, expires)
            if expires is not None:
                self._count("touch_misses" if item is None else "touch_hits")
            elif item is None:
                self._count("get_misses")
            if item is not None:
                store.hits += 1
                value = (with_cas(item) if has_cas else item[0])[: -len(END)]
                found.append(value)
                size += len(value)
                if size >= _LONG_BYTES and (left := list(keys)):
                    raise _UnfinishedError(b"".join(found), [*words[:first], *left])
        return b"".join([*found, END])

    # --- storage ---

    def _set(self, words: Words) -> bytes:
        # Most often there are no flags, no expiry time, and nothing but the block behind the size: then it takes two
        # thirds of the time that it would take below.
        if len(words) == 6:
            _, key, flags, exptime, size, value = words
            if (
                flags == exptime == b"0"
                and _SIZES.get(size) == len(value)
                and self._store.put(key, flags, size, value, NEVER)
            ):
                return _STORED
        key, flags, size, expires, value, is_silent = storage_line(self._store, words, 5)
        if not self._store.put(key, flags, size, value, expires):
            raise RefusedError(BAD_LINE, is_silent)
        return b"" if is_silent else _STORED

    def _add(self, words: Words) -> bytes:
        line = storage_line(self._store, words, 5)
        return self._put_if(self._store.get(line[0]) is None, line)

    def _replace(self, words: Words) -> bytes:
        line = storage_line(self._store, words, 5)
        return self._put_if(self._store.get(line[0]) is not None, line)

    def _append(self, words: Words) -> bytes:
        key, flags, _, _, more, is_silent = storage_line(self._store, words, 5)
        item = self._store.get(key)
        value = b""
        if item is not None:
            flags, value = take_apart(item[0])
            value = value + more if words[0] == b"append" else more + value
        if item is None or is_too_large(key, flags, len(value)):
            self._count("not_stored")
            return b"" if is_silent else _NOT_STORED
        return self._put_if(True, (key, flags, b"%d" % len(value), item[1], value, is_silent))

    def _cas(self, words: Words) -> bytes:
        line = storage_line(self._store, words, 6)
        cas = number_of(words[5], 0, MAX_U64)
        if cas is None:
            raise RefusedError(BAD_LINE, line[5])
        item = self._store.get(line[0])
        if item is None:
            self._count("cas_misses")
            return b"" if line[5] else _NOT_FOUND
        if item[2] != cas:
            self._count("cas_badval")
            return b"" if line[5] else _EXISTS
        self._count("cas_hits")
        return self._put_if(True, line)

    def _put_if(self, is_wanted: bool, line: Line) -> bytes:
        key, flags, size, expires, value, is_silent = line
        if not is_wanted:
            self._count("not_stored")
        elif not self._store.put(key, flags, size, value, expires):
            raise RefusedError(BAD_LINE, is_silent)
        return b"" if is_silent else _STORED if is_wanted else _NOT_STORED

    # --- everything else ---

    def _arithmetic(self, words: Words) -> bytes:
        if len(words) not in (3, 4):
            return ERROR
        return unless_silent(words, self._count_on(words[1], words[2], words[0] == b"incr"))

    def _count_on(self, key: bytes, delta: bytes, is_up: bool) -> bytes:
        name = "incr" if is_up else "decr"
        by = number_of(delta, 0, MAX_U64)
        if len(key) > MAX_KEY_BYTES:
            return BAD_LINE
        if by is None:
            return _BAD_DELTA
        item = self._store.get(key)
        if item is None:
            self._count(f"{name}_misses")
            return _NOT_FOUND
        flags, value = take_apart(item[0])
        match = _COUNTER.match(value[:_COUNTER_BYTES])
        number = int(match[1] or 0) if match else MAX_U64 + 1
        if number > MAX_U64:
            return _NO_NUMBER
        number = (number + by) & MAX_U64 if is_up else max(number - by, 0)
        told = b"%d" % number
        kept = told.ljust(len(value))
        self._store.put(key, flags, b"%d" % len(kept), kept, item[1])
        self._count(f"{name}_hits")
        return told + b"\r\n"

    def _delete(self, words: Words) -> bytes:
        count = len(words)
        if not 1 < count < 5:
            return ERROR
        if count > 2:
            # An old form has a time in front of noreply, which must be 0.
            is_silent = words[-1] == NOREPLY
            if not (words[2] == b"0" or (count == 3 and is_silent)) or (count == 4 and not is_silent):
                return unless_silent(words, _BAD_DELETE)
            return unless_silent(words, self._delete_key(words[1]))
        return self._delete_key(words[1])

    def _delete_key(self, key: bytes) -> bytes:
        if len(key) > MAX_KEY_BYTES:
            return BAD_LINE
        if self._store.get(key) is None:
            self._count("delete_misses")
            return _NOT_FOUND
        self._store.remove(key)
        self._count("delete_hits")
        return _DELETED

    def _touch(self, words: Words) -> bytes:
        if len(words) not in (3, 4):
            return ERROR
        exptime = number_of(words[2], MIN_EXPTIME, MAX_EXPTIME)
        if len(words[1]) > MAX_KEY_BYTES:
            return unless_silent(words, BAD_LINE)
        if exptime is None:
            return unless_silent(words, _BAD_EXPTIME)
        is_there = self._store.touch(words[1], self._store.expiry(exptime)) is not None
        self._count("touch_hits" if is_there else "touch_misses")
        return unless_silent(words, _TOUCHED if is_there else _NOT_FOUND)

    def _flush_all(self, words: Words) -> bytes:
        if len(words) > 3:
            return ERROR
        has_delay = len(words) > 1 + (words[-1] == NOREPLY)
        delay = number_of(words[1], MIN_EXPTIME, MAX_EXPTIME) if has_delay else 0
        if delay is None:
            return unless_silent(words, _BAD_EXPTIME)
        self._count("cmd_flush")
        self._store.flush(self._store.expiry(delay) if delay > 0 else self._store.now)
        return unless_silent(words, _OK)

    def _verbosity(self, words: Words) -> bytes:
        if len(words) not in (2, 3):
            return ERROR
        level = number_of(words[1], 0, MAX_U32)
        if level is None:
            return unless_silent(words, BAD_LINE)
        self._set_verbosity(level)
        return unless_silent(words, _OK)

    def _version(self, words: Words) -> bytes:
        return b"VERSION %b\r\n" % VERSION

    def _quit(self, words: Words) -> bytes:
        raise QuitError

    def _stats(self, words: Words) -> bytes:
        kind = words[1] if len(words) > 1 else b""
        if kind == b"reset":
            self._store.counts.clear()
            self._store.hits = 0
            self._changes_before = self._store.changes
            return _RESET
        if kind == b"":
            told = self._general_stats()
        elif kind == b"settings":
            told = self._settings()
        elif kind in (b"items", b"slabs"):
            told = {}  # there are no slabs here
        else:
            return ERROR
        return b"".join([*[f"STAT {name} {value}\r\n".encode() for name, value in told.items()], END])

    def _general_stats(self) -> dict[str, object]:
        store, counts = self._store, self._store.counts
        stored = store.changes - self._changes_before - counts["incr_hits"] - counts["decr_hits"]
        return {
            "pid": os.getpid(),
            "uptime": int(time.monotonic() - self._began),
            "time": int(time.time()),
            "version": VERSION.decode(),
            "pointer_size": struct.calcsize("P") * 8,
            **self._server_stats(),
            "cmd_get": store.hits + counts["get_misses"],
            "cmd_set": stored + sum(counts[name] for name in ("not_stored", "cas_misses", "cas_badval")),
            "cmd_flush": counts["cmd_flush"],
            "cmd_touch": counts["touch_hits"] + counts["touch_misses"],
            "get_hits": store.hits,
            **{name: counts[name] for name in _COUNTS},
            "limit_maxbytes": store.max_bytes,
            "bytes": store.bytes,
            "curr_items": len(store),
            "total_items": store.changes,
            "evictions": counts["evictions"],
            "reclaimed": counts["reclaimed"],
        }

    def _count(self, event: str) -> None:
        self._store.counts[event] += 1
