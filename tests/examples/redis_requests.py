"""Makes up requests for a Redis server: sensible ones on few keys, so that they meet each other, and wrong ones."""

from __future__ import annotations

import random

Request = tuple[bytes, ...]

BATCH = 64
KEYS = {
    "string": (b"a", b"b", b"c"),
    "hash": (b"d", b"e"),
    "list": (b"f", b"g", b"h"),
    "set": (b"i", b"j", b"k"),
}
ALL_KEYS = tuple(key for keys in KEYS.values() for key in keys)
KINDS = tuple(KEYS)
VALUES = (
    b"",
    b"1",
    b"-7",
    b"10.5",
    b"0.1",
    b"abc",
    b"9223372036854775807",
    b" 1",
    b"01",
    b"1e3",
    b"\0\r\n\xff",
    b"x" * 40,
)
FIELDS = (b"f", b"g", b"h", b"1")
WRONG_NUMBERS = (b"x", b"", b"1.5", b"+1")
NUMBERS = (b"0", b"1", b"2", b"-1", b"-2", b"3", b"100", b"-100", b"9223372036854775807", *WRONG_NUMBERS)
SECONDS = (b"100000", b"200000", b"0", b"-1", b"x", b"9223372036854775807", b"9223372036854775")
MOMENTS = (b"4000000000", b"1", b"5000000000", b"0", b"x")
MOMENTS_TO_COME = ((b"EXAT", b"4000000000"), (b"pxat", b"4000000000000"), (b"exat", b"0"), (b"EXAT", b"x"), (b"pxat",))
PATTERNS = (b"*", b"?", b"a*", b"[a-c]", b"[^a]", b"[c-a]", b"\\a", b"[a", b"a\\", b"**b*", b"[]", b"[^]")
FRACTIONS = (
    *(b"0.1", b"0.2", b"-3.75", b"1e3", b"1e-5", b"100.123456789", b"1e15", b".5", b"5."),
    *(b"x", b"inf", b"1e400x"),
)
ENDS = (b"left", b"RIGHT", b"Left", b"right", b"left", b"right", b"bad")
LIMITS = ((), (), (b"limit", b"1"), (b"LIMIT", b"0"), (b"limit", b"-1"), (b"limit",), (b"bad", b"1"))
COPY_OPTIONS = ((), (), (b"replace",), (b"DB", b"0", b"REPLACE"), (b"db", b"99"), (b"db", b"x"), (b"db",), (b"bad",))
ALL_OR_NOTHING = (b"0", b"1000", b"1000", b"x", b"9223372036854775807", b"-9223372036854775808")
OF_ANY_LENGTH = (
    *(b"get", b"set", b"mget", b"msetnx", b"copy", b"touch", b"expire", b"dbsize", b"quux"),
    *(b"hset", b"hmset", b"lpush", b"lmove", b"lpos", b"linsert", b"rpoplpush"),
    *(b"sadd", b"smove", b"sunionstore", b"sintercard"),
)
UNORDERED = {
    *(b"smembers", b"sinter", b"sunion", b"sdiff", b"keys", b"spop", b"srandmember", b"hrandfield"),
    *(b"scan", b"sscan", b"hscan"),
}
"""What is answered in an order that each server chooses."""
TIMES = {b"ttl", b"pttl", b"expiretime", b"pexpiretime"}
"""What is answered with a time that may have moved on."""


class Requests:
    """Requests that follow from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._pick = self._random.choice
        self._makers = (self.on_strings, self.on_strings, self.on_keys, self.on_hashes, self.on_lists, self.on_sets)

    def batch(self) -> list[Request]:
        """Return what a client might send in one piece."""
        requests: list[Request] = []
        while len(requests) < BATCH:
            chance = self._random.random()
            if chance < 0.02:
                requests += [(b"watch", self._pick(ALL_KEYS)), (b"unwatch",)]
            elif chance < 0.05:
                requests += self.transaction()
            elif chance < 0.15:
                requests.append(self.unordered())
            elif chance < 0.16:
                requests.append((self._pick((b"exec", b"discard", b"multi", b"discard")),))
                requests.append((b"discard",))
            else:
                requests.append(self.one())
        return requests

    def transaction(self) -> list[Request]:
        watched = [(b"watch", self._pick(ALL_KEYS))] if self._random.random() < 0.5 else []
        between = [self.one()] if watched else []
        inside = [self.one() for _ in range(self._random.randint(0, 6))]
        # A time may differ, and then a transaction as a whole can't be compared to the last byte.
        inside = [one for one in inside if one[0] not in TIMES]
        nested = [(b"multi",), (b"watch", b"a")] if self._random.random() < 0.1 else []
        end = (b"discard",) if self._random.random() < 0.1 else (b"exec",)
        return [*watched, *between, (b"multi",), *inside, *nested, end]

    def one(self) -> Request:
        """Return a request that may stand anywhere, in a transaction too."""
        return self.on_nothing() if self._random.random() < 0.1 else self._pick(self._makers)()

    def key(self, kind: str) -> bytes:
        """Return a key; as a rule one for this kind of value."""
        return self._pick(ALL_KEYS if self._random.random() < 0.05 else KEYS[kind])

    def values(self) -> list[bytes]:
        return self._random.sample(VALUES, self._random.randint(1, 4))

    # --- kind by kind ---

    def on_strings(self) -> Request:
        pick = self._pick
        key, other, value, number = self.key("string"), self.key("string"), pick(VALUES), pick(NUMBERS)
        flags = self._random.choices((b"nx", b"XX", b"get", b"KEEPTTL", b"bad"), k=2)
        return pick(
            (
                (b"set", key, value),
                (b"SET", key, pick(VALUES), *flags),
                (b"set", key, value, pick((b"ex", b"PX")), pick(SECONDS)),
                (b"set", key, value, *pick(MOMENTS_TO_COME), pick((b"nx", b"get", b"keepttl", b"xx"))),
                (b"get", key),
                (b"GeT", key),
                (b"getset", key, value),
                (b"getdel", key),
                (b"getex", key, pick((b"ex", b"px")), pick(SECONDS)),
                (b"getex", key, *pick(((), (b"persist",), (b"exat", b"4000000000"), (b"bad",), (b"ex",)))),
                (b"mget", key, other, b"nosuch"),
                (b"mset", key, value, other, *pick(((b"v",), ()))),
                (b"msetnx", key, value, other, *pick(((b"v",), (b"v",), ()))),
                (b"setnx", key, value),
                (b"setex", key, pick(SECONDS), value),
                (b"psetex", key, b"100000", value),
                (b"append", key, value),
                (b"strlen", key),
                (pick((b"getrange", b"substr")), key, number, pick(NUMBERS)),
                (b"setrange", key, pick(NUMBERS[:7]), value),
                (pick((b"incr", b"decr")), key),
                (pick((b"incrby", b"decrby")), key, number),
                (b"decrby", key, b"-9223372036854775808"),
                (b"incrbyfloat", key, pick(FRACTIONS)),
            )
        )

    def on_keys(self) -> Request:
        pick = self._pick
        kind = pick(KINDS)
        key, other = self.key(kind), self.key(kind)
        return pick(
            (
                (pick((b"expire", b"pexpire")), key, pick(SECONDS)),
                (b"expire", key, b"%d" % self._random.randrange(10**5, 10**8), *self.conditions()),
                (pick((b"expireat", b"pexpireat")), key, pick((b"4000000000", b"4000000000000", pick(MOMENTS)))),
                (pick((b"ttl", b"pttl")), key),
                (pick((b"expiretime", b"pexpiretime", b"exists", b"type", b"persist")), key),
                (pick((b"del", b"unlink", b"exists", b"touch")), key, other, key),
                (b"copy", key, other, *pick(COPY_OPTIONS)),
                (b"rename", key, other),
                (b"renamenx", key, other),
                (pick((b"dbsize", b"flushall", b"flushdb") if self._random.random() < 0.05 else (b"dbsize",)),),
            )
        )

    def on_hashes(self) -> Request:
        pick = self._pick
        key, field, value = self.key("hash"), pick(FIELDS), pick(VALUES)
        return pick(
            (
                (pick((b"hset", b"HMSET")), key, field, value, *pick(((), (b"g", b"2"), (b"g",)))),
                (b"hsetnx", key, field, value),
                (pick((b"hget", b"hexists", b"hstrlen")), key, field),
                (b"hmget", key, field, b"nosuch"),
                (pick((b"hgetall", b"hkeys", b"hvals", b"hlen")), key),
                (b"hdel", key, field, pick(FIELDS)),
                (b"hincrby", key, field, pick(NUMBERS)),
                (b"hincrbyfloat", key, field, pick(FRACTIONS)),
            )
        )

    def on_lists(self) -> Request:
        pick = self._pick
        key, other, value, number = self.key("list"), self.key("list"), pick(VALUES), pick(NUMBERS)
        return pick(
            (
                (pick((b"lpush", b"rpush")), key, *self.values()),
                (pick((b"lpush", b"rpush", b"lpushx", b"rpushx")), key, *self.values()),
                (pick((b"lpop", b"rpop")), key, *pick(((), (number,), (b"2",), (b"1", b"1")))),
                (b"llen", key),
                (b"lrange", key, number, pick(NUMBERS)),
                (b"lindex", key, number),
                (b"lpos", key, value, *self.place_options()),
                (b"linsert", key, pick((b"before", b"AFTER", b"bad")), pick(VALUES), value),
                (b"lset", key, number, value),
                (b"ltrim", key, pick(NUMBERS[:5]), pick(NUMBERS)),
                (b"lrem", key, number, value),
                (b"lmove", key, other, pick(ENDS), pick(ENDS)),
                (b"rpoplpush", key, other),
            )
        )

    def on_sets(self) -> Request:
        pick = self._pick
        key, other, value = self.key("set"), self.key("set"), pick(VALUES)
        return pick(
            (
                (b"sadd", key, *self.values()),
                (b"srem", key, value, b"abc"),
                (b"sismember", key, value),
                (b"smismember", key, value, b"abc"),
                (b"scard", key),
                (b"smove", key, other, value),
                (pick((b"sinterstore", b"sunionstore", b"sdiffstore")), key, other, self.key("set")),
                (b"sintercard", pick((b"2", b"2", b"1", *NUMBERS)), key, other, *pick(LIMITS)),
            )
        )

    def on_nothing(self) -> Request:
        """Return a request that is about no key, or is wrong."""
        pick = self._pick
        value = pick(VALUES)
        return pick(
            (
                (b"echo", value),
                (b"ping", *pick(((), (value,), (value, value)))),
                (b"select", pick((b"0", b"99", b"x"))),
                (pick(OF_ANY_LENGTH), *self.values()),
                (pick((b"get", b"ttl", b"rename", b"lrange", b"nosuch", b"")),),
                (b"publish", pick(ALL_KEYS), value),
                (b"pubsub", *pick(((b"numpat",), (b"numsub", b"a"), (b"channels",), (b"bad",)))),
            )
        )

    def unordered(self) -> Request:
        """Return a request whose answer has no order."""
        pick = self._pick
        field_options = pick(((), (b"WITHVALUES",), (b"WITHVALUES",), (b"bad",), (b"1", b"1")))
        wrong_walk = pick(((b"x",), (b"0", b"count", b"0"), (b"0", b"type", b"set"), ()))
        return pick(
            (
                (b"smembers", self.key("set")),
                (pick((b"sinter", b"sunion", b"sdiff")), self.key("set"), self.key("set"), self.key("set")),
                (b"keys", pick(PATTERNS)),
                (b"spop", self.key("set"), b"1000"),
                (b"srandmember", self.key("set"), pick(ALL_OR_NOTHING), *pick(((), (), (b"1",)))),
                (b"hrandfield", self.key("hash"), pick(ALL_OR_NOTHING), *field_options),
                (b"sscan", self.key("set"), b"0", b"count", b"1000", b"match", pick(PATTERNS)),
                (b"hscan", self.key("hash"), b"0", b"count", b"1000", b"match", pick(PATTERNS)),
                (pick((b"sscan", b"hscan")), pick(ALL_KEYS), *wrong_walk),
                (b"scan", b"0", b"count", b"1000", b"match", pick(PATTERNS)),
                (b"scan", b"0", b"count", b"1000", b"type", pick((b"string", b"list", b"set", b"HASH", b"bad"))),
                (b"scan", *pick(((b"x",), (b"0", b"count", b"0"), (b"0", b"bad"), (b"0", b"count", b"x")))),
            )
        )

    # --- options ---

    def conditions(self) -> tuple[bytes, ...]:
        """Return conditions of EXPIRE. Two moments must be far apart: the servers are asked at different ones."""
        return tuple(self._random.choices((b"nx", b"XX", b"gt", b"LT", b"bad"), k=self._pick((0, 0, 1, 1, 2))))

    def place_options(self) -> tuple[bytes, ...]:
        """Return options of LPOS, of which the last may lack its number."""
        names = self._random.sample((b"rank", b"COUNT", b"maxlen", b"bad"), self._pick((0, 0, 1, 1, 2, 3)))
        words = [word for name in names for word in (name, self._pick((b"1", b"2", b"-1", *NUMBERS)))]
        return tuple(words[: self._pick((-1, None, None, None, None))])
