"""The table of all commands, and the three tables that follow from it.

Inside a transaction most commands mean "keep this for EXEC", and who listens to channels in the old version of the
protocol may say few things. Instead of asking at each request what state a client is in, each state has a table of
its own, and the client refers to the one that holds (``Client.choose_commands``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import redis_blocking as blocking
import redis_connection as connection
import redis_hashes as hashes
import redis_keys as keys
import redis_lists as lists
import redis_pubsub as pubsub
import redis_sets as sets
import redis_strings as strings
import redis_transactions as transactions
from redis_replies import CommandError, array, array_of_any, bulk, bulks, integer, text_of, words

if TYPE_CHECKING:
    from redis_client import Client, Entry, Handler, Table

_NO_KEYS, _ONE_KEY, _TWO_KEYS, _ALL_KEYS, _PAIRS = (0, 0, 0), (1, 1, 1), (1, 2, 1), (1, -1, 1), (1, -1, 2)
_ALL_BUT_LAST = (1, -2, 1)
_MAX_TOLD = 128
_AT_ONCE = {"multi", "exec", "discard", "watch", "quit", "reset"}
_FOR_LISTENERS = {"subscribe", "unsubscribe", "psubscribe", "punsubscribe", "ping", "quit", "reset"}


class Command(NamedTuple):
    """A command: its arity counts the name, and is negative if it is the least; where its keys are, as Redis tells."""

    name: str
    arity: int
    handler: Handler
    flags: str
    keys: tuple[int, int, int]

    @property
    def summary(self) -> str:
        """What it does, in one line."""
        return (self.handler.__doc__ or "").strip().partition("\n")[0]

    @property
    def entry(self) -> Entry:
        """What a table has under its name."""
        return self.handler, abs(self.arity), self.arity < 0


def command_info(client: Client, request: list[bytes]) -> bytes:
    """Tell how commands are called: all of them, if none is named."""
    chosen = _chosen(request) if len(request) > 2 else list(BY_NAME.values())
    return array_of_any(client.dialect.null_array if one is None else _described(one) for one in chosen)


def command_docs(client: Client, request: list[bytes]) -> bytes:
    """Tell what commands do: all of them, if none is named."""
    chosen = _chosen(request) if len(request) > 2 else list(BY_NAME.values())
    mapping = client.dialect.mapping
    return mapping({c.name.encode(): mapping({b"summary": bulk(c.summary.encode())}) for c in chosen if c})


def command_count(client: Client, request: list[bytes]) -> bytes:
    """Tell how many commands there are."""
    return integer(len(BY_NAME))


def command_list(client: Client, request: list[bytes]) -> bytes:
    """Tell the names of all commands."""
    return bulks([name.encode() for name in BY_NAME])


def _chosen(request: list[bytes]) -> list[Command | None]:
    return [BY_NAME.get(text_of(name).lower()) for name in request[2:]]


def _described(one: Command) -> bytes:
    parts = [bulk(one.name.encode()), integer(one.arity), words(one.flags.split()), *map(integer, one.keys)]
    return array([*parts, *[array([])] * 4])  # no categories, tips, key specifications and subcommands


def subcommand(client: Client, request: list[bytes]) -> bytes:
    """Do what the second word says."""
    if len(request) == 1:
        request = [*request, b"INFO"]  # COMMAND alone; others have two words at least
    container, name = request[0].lower(), request[1].lower()
    entry = client.commands.get((container, name))
    if entry is None:
        client.has_failed = True
        raise CommandError(f"ERR unknown subcommand '{text_of(request[1])}'. Try {text_of(container.upper())} HELP.")
    handler, least, is_open = entry
    has_arity = len(request) == least or (is_open and len(request) > least)
    return handler(client, request) if has_arity else refuse_arity(client, request)


COMMANDS = (
    Command("get", 2, strings.get, "readonly fast", _ONE_KEY),
    Command("set", -3, strings.set_, "write denyoom", _ONE_KEY),
    Command("setnx", 3, strings.setnx, "write denyoom fast", _ONE_KEY),
    Command("setex", 4, strings.setex, "write denyoom", _ONE_KEY),
    Command("psetex", 4, strings.setex, "write denyoom", _ONE_KEY),
    Command("getset", 3, strings.getset, "write denyoom fast", _ONE_KEY),
    Command("getdel", 2, strings.getdel, "write fast", _ONE_KEY),
    Command("getex", -2, strings.getex, "write fast", _ONE_KEY),
    Command("mget", -2, strings.mget, "readonly fast", _ALL_KEYS),
    Command("mset", -3, strings.mset, "write denyoom", _PAIRS),
    Command("msetnx", -3, strings.msetnx, "write denyoom", _PAIRS),
    Command("append", 3, strings.append, "write denyoom fast", _ONE_KEY),
    Command("strlen", 2, strings.strlen, "readonly fast", _ONE_KEY),
    Command("getrange", 4, strings.getrange, "readonly", _ONE_KEY),
    Command("substr", 4, strings.getrange, "readonly", _ONE_KEY),
    Command("setrange", 4, strings.setrange, "write denyoom", _ONE_KEY),
    Command("incr", 2, strings.incr, "write denyoom fast", _ONE_KEY),
    Command("decr", 2, strings.decr, "write denyoom fast", _ONE_KEY),
    Command("incrby", 3, strings.incrby, "write denyoom fast", _ONE_KEY),
    Command("decrby", 3, strings.decrby, "write denyoom fast", _ONE_KEY),
    Command("incrbyfloat", 3, strings.incrbyfloat, "write denyoom fast", _ONE_KEY),
    Command("expire", -3, keys.expire, "write fast", _ONE_KEY),
    Command("pexpire", -3, keys.pexpire, "write fast", _ONE_KEY),
    Command("expireat", -3, keys.expireat, "write fast", _ONE_KEY),
    Command("pexpireat", -3, keys.pexpireat, "write fast", _ONE_KEY),
    Command("ttl", 2, keys.ttl, "readonly fast", _ONE_KEY),
    Command("pttl", 2, keys.pttl, "readonly fast", _ONE_KEY),
    Command("expiretime", 2, keys.expiretime, "readonly fast", _ONE_KEY),
    Command("pexpiretime", 2, keys.pexpiretime, "readonly fast", _ONE_KEY),
    Command("persist", 2, keys.persist, "write fast", _ONE_KEY),
    Command("del", -2, keys.del_, "write", _ALL_KEYS),
    Command("unlink", -2, keys.del_, "write fast", _ALL_KEYS),
    Command("exists", -2, keys.exists, "readonly fast", _ALL_KEYS),
    Command("touch", -2, keys.exists, "readonly fast", _ALL_KEYS),
    Command("type", 2, keys.type_, "readonly fast", _ONE_KEY),
    Command("keys", 2, keys.keys, "readonly", _NO_KEYS),
    Command("scan", -2, keys.scan, "readonly", _NO_KEYS),
    Command("rename", 3, keys.rename, "write", _TWO_KEYS),
    Command("renamenx", 3, keys.renamenx, "write fast", _TWO_KEYS),
    Command("copy", -3, keys.copy, "write denyoom", _TWO_KEYS),
    Command("dbsize", 1, keys.dbsize, "readonly fast", _NO_KEYS),
    Command("randomkey", 1, keys.randomkey, "readonly", _NO_KEYS),
    Command("flushall", -1, keys.flush, "write", _NO_KEYS),
    Command("flushdb", -1, keys.flush, "write", _NO_KEYS),
    Command("hset", -4, hashes.hset, "write denyoom fast", _ONE_KEY),
    Command("hmset", -4, hashes.hmset, "write denyoom fast", _ONE_KEY),
    Command("hsetnx", 4, hashes.hsetnx, "write denyoom fast", _ONE_KEY),
    Command("hget", 3, hashes.hget, "readonly fast", _ONE_KEY),
    Command("hmget", -3, hashes.hmget, "readonly fast", _ONE_KEY),
    Command("hgetall", 2, hashes.hgetall, "readonly", _ONE_KEY),
    Command("hdel", -3, hashes.hdel, "write fast", _ONE_KEY),
    Command("hexists", 3, hashes.hexists, "readonly fast", _ONE_KEY),
    Command("hlen", 2, hashes.hlen, "readonly fast", _ONE_KEY),
    Command("hstrlen", 3, hashes.hstrlen, "readonly fast", _ONE_KEY),
    Command("hkeys", 2, hashes.hkeys, "readonly", _ONE_KEY),
    Command("hvals", 2, hashes.hvals, "readonly", _ONE_KEY),
    Command("hscan", -3, hashes.hscan, "readonly", _ONE_KEY),
    Command("hrandfield", -2, hashes.hrandfield, "readonly", _ONE_KEY),
    Command("hincrby", 4, hashes.hincrby, "write denyoom fast", _ONE_KEY),
    Command("hincrbyfloat", 4, hashes.hincrbyfloat, "write denyoom fast", _ONE_KEY),
    Command("lpush", -3, lists.lpush, "write denyoom fast", _ONE_KEY),
    Command("rpush", -3, lists.rpush, "write denyoom fast", _ONE_KEY),
    Command("lpushx", -3, lists.lpushx, "write denyoom fast", _ONE_KEY),
    Command("rpushx", -3, lists.rpushx, "write denyoom fast", _ONE_KEY),
    Command("lpop", -2, lists.lpop, "write fast", _ONE_KEY),
    Command("rpop", -2, lists.rpop, "write fast", _ONE_KEY),
    Command("lmove", 5, lists.lmove, "write denyoom", _TWO_KEYS),
    Command("rpoplpush", 3, lists.rpoplpush, "write denyoom", _TWO_KEYS),
    Command("llen", 2, lists.llen, "readonly fast", _ONE_KEY),
    Command("lrange", 4, lists.lrange, "readonly", _ONE_KEY),
    Command("lindex", 3, lists.lindex, "readonly", _ONE_KEY),
    Command("lpos", -3, lists.lpos, "readonly", _ONE_KEY),
    Command("linsert", 5, lists.linsert, "write denyoom", _ONE_KEY),
    Command("lset", 4, lists.lset, "write denyoom", _ONE_KEY),
    Command("ltrim", 4, lists.ltrim, "write", _ONE_KEY),
    Command("lrem", 4, lists.lrem, "write", _ONE_KEY),
    Command("blpop", -3, blocking.blpop, "write noscript blocking", _ALL_BUT_LAST),
    Command("brpop", -3, blocking.brpop, "write noscript blocking", _ALL_BUT_LAST),
    Command("blmove", 6, blocking.blmove, "write denyoom noscript blocking", _TWO_KEYS),
    Command("brpoplpush", 4, blocking.brpoplpush, "write denyoom noscript blocking", _TWO_KEYS),
    Command("sadd", -3, sets.sadd, "write denyoom fast", _ONE_KEY),
    Command("srem", -3, sets.srem, "write fast", _ONE_KEY),
    Command("smembers", 2, sets.smembers, "readonly", _ONE_KEY),
    Command("sismember", 3, sets.sismember, "readonly fast", _ONE_KEY),
    Command("smismember", -3, sets.smismember, "readonly fast", _ONE_KEY),
    Command("scard", 2, sets.scard, "readonly fast", _ONE_KEY),
    Command("smove", 4, sets.smove, "write fast", _TWO_KEYS),
    Command("sinter", -2, sets.sinter, "readonly", _ALL_KEYS),
    Command("sunion", -2, sets.sunion, "readonly", _ALL_KEYS),
    Command("sdiff", -2, sets.sdiff, "readonly", _ALL_KEYS),
    Command("sinterstore", -3, sets.sinterstore, "write denyoom", _ALL_KEYS),
    Command("sunionstore", -3, sets.sunionstore, "write denyoom", _ALL_KEYS),
    Command("sdiffstore", -3, sets.sdiffstore, "write denyoom", _ALL_KEYS),
    Command("sintercard", -3, sets.sintercard, "readonly movablekeys", _NO_KEYS),
    Command("spop", -2, sets.spop, "write fast", _ONE_KEY),
    Command("srandmember", -2, sets.srandmember, "readonly", _ONE_KEY),
    Command("sscan", -3, sets.sscan, "readonly", _ONE_KEY),
    Command("subscribe", -2, pubsub.subscribe, "pubsub noscript", _NO_KEYS),
    Command("unsubscribe", -1, pubsub.unsubscribe, "pubsub noscript", _NO_KEYS),
    Command("psubscribe", -2, pubsub.psubscribe, "pubsub noscript", _NO_KEYS),
    Command("punsubscribe", -1, pubsub.punsubscribe, "pubsub noscript", _NO_KEYS),
    Command("publish", 3, pubsub.publish, "pubsub fast", _NO_KEYS),
    Command("pubsub", -2, subcommand, "pubsub", _NO_KEYS),
    Command("pubsub|channels", -2, pubsub.pubsub_channels, "pubsub", _NO_KEYS),
    Command("pubsub|numsub", -2, pubsub.pubsub_numsub, "pubsub", _NO_KEYS),
    Command("pubsub|numpat", 2, pubsub.pubsub_numpat, "pubsub", _NO_KEYS),
    Command("multi", 1, transactions.multi, "noscript fast", _NO_KEYS),
    Command("exec", 1, transactions.exec_, "noscript", _NO_KEYS),
    Command("discard", 1, transactions.discard, "noscript fast", _NO_KEYS),
    Command("watch", -2, transactions.watch, "noscript fast", _ALL_KEYS),
    Command("unwatch", 1, transactions.unwatch, "noscript fast", _NO_KEYS),
    Command("ping", -1, connection.ping, "fast", _NO_KEYS),
    Command("echo", 2, connection.echo, "fast", _NO_KEYS),
    Command("hello", -1, connection.hello, "noscript fast", _NO_KEYS),
    Command("quit", -1, connection.quit_, "noscript fast", _NO_KEYS),
    Command("reset", 1, connection.reset, "noscript fast", _NO_KEYS),
    Command("select", 2, connection.select, "fast", _NO_KEYS),
    Command("client", -2, subcommand, "noscript", _NO_KEYS),
    Command("client|setname", 3, connection.client_setname, "noscript", _NO_KEYS),
    Command("client|getname", 2, connection.client_getname, "noscript", _NO_KEYS),
    Command("client|setinfo", 4, connection.client_setinfo, "noscript", _NO_KEYS),
    Command("client|id", 2, connection.client_id, "noscript", _NO_KEYS),
    Command("client|info", 2, connection.client_info, "noscript", _NO_KEYS),
    Command("client|list", -2, connection.client_list, "admin noscript", _NO_KEYS),
    Command("config", -2, subcommand, "admin noscript", _NO_KEYS),
    Command("config|get", -3, connection.config_get, "admin noscript", _NO_KEYS),
    Command("info", -1, connection.info, "", _NO_KEYS),
    Command("time", 1, connection.time_, "fast", _NO_KEYS),
    Command("command", -1, subcommand, "", _NO_KEYS),
    Command("command|count", 2, command_count, "", _NO_KEYS),
    Command("command|docs", -2, command_docs, "", _NO_KEYS),
    Command("command|info", -2, command_info, "", _NO_KEYS),
    Command("command|list", -2, command_list, "", _NO_KEYS),
)
BY_NAME: Mapping[str, Command] = {one.name: one for one in COMMANDS if "|" not in one.name}


def _refuse_listener(client: Client, request: list[bytes]) -> bytes:
    allowed = "only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
    raise CommandError(f"ERR Can't execute '{_full_name(request)}': {allowed}")


def _refuse_unknown(client: Client, request: list[bytes]) -> bytes:
    client.has_failed = True
    name, *arguments = [text_of(word[:_MAX_TOLD]) for word in request[: _MAX_TOLD + 1]]
    told = ""
    for argument in arguments:
        if len(told) >= _MAX_TOLD:
            break
        told += f"'{argument[: _MAX_TOLD - len(told)]}' "
    raise CommandError(f"ERR unknown command '{name}', with args beginning with: {told}")


def _full_name(request: list[bytes]) -> str:
    name = text_of(request[0].lower())
    is_container = BY_NAME[name].handler is subcommand and len(request) > 1
    return f"{name}|{text_of(request[1].lower())}" if is_container else name


_UNKNOWN: Entry = (_refuse_unknown, 0, True)


def refuse_arity(client: Client, request: list[bytes]) -> bytes:
    """Answer a command that has too many words, or too few."""
    client.has_failed = True
    return CommandError(f"ERR wrong number of arguments for '{_full_name(request)}' command").reply


class Tables:
    """What clients may say in each state, by name, in capitals and in small letters."""

    def __init__(self) -> None:
        ordinary = {c.name for c in COMMANDS if c.handler is not subcommand}
        queued, refused = ordinary - _AT_ONCE, ordinary - _FOR_LISTENERS
        self.normal = _table({})
        self.queueing = _table(dict.fromkeys(queued, transactions.enqueue))
        self.subscribed = _table(dict.fromkeys(refused, _refuse_listener))

    def find(self, name: bytes) -> Entry:
        """Return the entry of a command outside of all states, however its name is written."""
        return lookup(self.normal, name)


def lookup(table: Table, name: bytes) -> Entry:
    """Return the entry of a command, however its name is written; one that refuses if there is none."""
    return table.get(name.lower(), _UNKNOWN)


def _table(handlers: Mapping[str, Handler]) -> Table:
    """Return a table of all commands in which some have other handlers."""
    table: dict[bytes | tuple[bytes, bytes], Entry] = {}
    for one in COMMANDS:
        handler, least, is_open = one.entry
        entry = (handlers.get(one.name, handler), least, is_open)
        name, _, sub = one.name.encode().partition(b"|")
        if sub:
            table[name, sub] = entry
        else:
            table[name] = table[name.upper()] = entry
    return table
