"""What a client says about its connection, and asks about the server."""

from __future__ import annotations

import os
import time

from redis_client import Client
from redis_glob import matcher
from redis_keys import check_database
from redis_replies import (
    NOTHING,
    OK,
    PONG,
    RESP2,
    RESP3,
    BadSyntaxError,
    CommandError,
    array,
    bulk,
    bulks,
    integer,
    integer_of,
    text_of,
)

VERSION = b"7.0.0"  # whose behaviour this server has; client libraries decide by it what they may use
_CLIENT_TYPES = {b"normal", b"pubsub", b"master", b"replica", b"slave"}
_SETTINGS = {b"save": b"", b"appendonly": b"no", b"databases": b"1", b"maxmemory": b"0"}


def ping(client: Client, request: list[bytes]) -> bytes:
    """Answer."""
    if len(request) > 2:
        raise CommandError("ERR wrong number of arguments for 'ping' command")
    if client.dialect is RESP2 and client.subscription_count:
        return bulks([b"pong", request[1] if len(request) == 2 else b""])
    return bulk(request[1]) if len(request) == 2 else PONG


def echo(client: Client, request: list[bytes]) -> bytes:
    """Send back a message."""
    return bulk(request[1])


def select(client: Client, request: list[bytes]) -> bytes:
    """Choose a database; there is one."""
    check_database(request[1])
    return OK


def quit_(client: Client, request: list[bytes]) -> bytes:
    """Answer and close."""
    client.deliver(OK)
    client.is_leaving = True
    return NOTHING


def reset(client: Client, request: list[bytes]) -> bytes:
    """Forget what this connection has chosen."""
    client.end()
    client.service.watches.leave(client)
    client.service.hub.leave(client)
    client.name = b""
    client.speak(RESP2)
    return b"+RESET\r\n"


def hello(client: Client, request: list[bytes]) -> bytes:
    """Choose the version of the protocol."""
    dialect, name, rest = client.dialect, client.name, iter(request[1:])
    version = next(rest, None)
    if version is not None:
        number = integer_of(version, "ERR Protocol version is not an integer or out of range")
        if number not in {2, 3}:
            raise CommandError("NOPROTO unsupported protocol version")
        dialect = RESP3 if number == 3 else RESP2
    for option in rest:
        more = [word for _, word in zip(range(2 if option.upper() == b"AUTH" else 1), rest, strict=False)]
        if option.upper() == b"SETNAME" and len(more) == 1:
            name = _checked_name(more[0])
        elif option.upper() == b"AUTH" and len(more) == 2:
            if more[0] != b"default":
                raise CommandError("WRONGPASS invalid username-password pair or user is disabled.")
        else:
            raise CommandError(f"ERR Syntax error in HELLO option '{text_of(option)}'")
    client.name = name
    client.speak(dialect)
    return dialect.mapping(
        {
            b"server": bulk(b"redis"),
            b"version": bulk(VERSION),
            b"proto": integer(dialect.version),
            b"id": integer(client.number),
            b"mode": bulk(b"standalone"),
            b"role": bulk(b"master"),
            b"modules": array([]),
        }
    )


def client_setname(client: Client, request: list[bytes]) -> bytes:
    """Name this connection."""
    client.name = _checked_name(request[2])
    return OK


def client_getname(client: Client, request: list[bytes]) -> bytes:
    """Get the name of this connection."""
    return bulk(client.name) if client.name else client.null


def client_setinfo(client: Client, request: list[bytes]) -> bytes:
    """Tell the name or the version of the library that a client uses."""
    _, _, kind, value = request
    if kind.lower() not in {b"lib-name", b"lib-ver"}:
        raise CommandError(f"ERR Unrecognized option '{text_of(kind)}'")
    client.facts[kind.lower()] = _checked_name(value)
    return OK


def client_id(client: Client, request: list[bytes]) -> bytes:
    """Get the number of this connection."""
    return integer(client.number)


def client_info(client: Client, request: list[bytes]) -> bytes:
    """Tell about this connection."""
    return client.dialect.verbatim(_description(client))


def client_list(client: Client, request: list[bytes]) -> bytes:
    """Tell about all connections, or about those of a type, or with certain numbers."""
    words = request[2:]
    chosen = list(client.service.clients.values())
    if len(words) == 2 and words[0].upper() == b"TYPE":
        kind = words[1].lower()
        if kind not in _CLIENT_TYPES:
            raise CommandError(f"ERR Unknown client type '{text_of(words[1])}'")
        chosen = [one for one in chosen if kind == (b"pubsub" if one.subscription_count else b"normal")]
    elif len(words) > 1 and words[0].upper() == b"ID":
        numbers = [integer_of(word, "ERR Invalid client ID") for word in words[1:]]
        chosen = [one for number in numbers if (one := client.service.clients.get(number)) is not None]
    elif words:
        raise BadSyntaxError
    return client.dialect.verbatim(b"".join(map(_description, chosen)))


def _checked_name(name: bytes) -> bytes:
    if any(not 33 <= letter <= 126 for letter in name):
        raise CommandError("ERR Client names cannot contain spaces, newlines or special characters.")
    return name


def _description(client: Client) -> bytes:
    connection = client.connection
    flags = {"P": client.subscription_count, "x": client.queue is not None, "b": client.wait is not None}
    facts = {
        "id": client.number,
        "addr": connection.peer_address,
        "laddr": connection.local_address,
        "name": client.name.decode(),
        "flags": "".join(flag for flag, is_set in flags.items() if is_set) or "N",
        "db": 0,
        "sub": len(client.channels),
        "psub": len(client.patterns),
        "multi": -1 if client.queue is None else len(client.queue),
        "resp": client.dialect.version,
        "lib-name": client.facts.get(b"lib-name", b"").decode(),
        "lib-ver": client.facts.get(b"lib-ver", b"").decode(),
    }
    return " ".join(f"{name}={fact}" for name, fact in facts.items()).encode() + b"\n"


def config_get(client: Client, request: list[bytes]) -> bytes:
    """Get the settings that match patterns."""
    fits = [matcher(pattern.lower()).fullmatch for pattern in request[2:]]
    found = {name: bulk(value) for name, value in _SETTINGS.items() if any(fit(name) for fit in fits)}
    return client.dialect.mapping(found)


def time_(client: Client, request: list[bytes]) -> bytes:
    """Get the time of day: seconds since 1970, and microseconds."""
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    return bulks([b"%d" % seconds, b"%d" % microseconds])


def info(client: Client, request: list[bytes]) -> bytes:
    """Tell about the server."""
    service = client.service
    store = service.store
    sections: dict[str, dict[str, object]] = {
        "Server": {
            "redis_version": VERSION.decode(),
            "redis_mode": "standalone",
            "process_id": os.getpid(),
            "uptime_in_seconds": int(time.monotonic() - service.began),
        },
        "Clients": {"connected_clients": len(service.clients), "blocked_clients": service.waiting_room.client_count},
        "Stats": {
            "total_connections_received": service.connection_count,
            "total_commands_processed": service.command_count,
            "expired_keys": store.expired_count,
            "pubsub_channels": len(service.hub.channels),
            "pubsub_patterns": len(service.hub.patterns),
        },
        "Keyspace": {"db0": f"keys={len(store)},expires={len(store.expiries)},avg_ttl=0"} if len(store) else {},
    }
    wanted = {word.decode(errors="replace").lower() for word in request[1:]} - {"default", "all", "everything"}
    chosen = {name: facts for name, facts in sections.items() if not wanted or name.lower() in wanted}
    texts = [
        f"# {name}\r\n" + "".join(f"{fact}:{value}\r\n" for fact, value in facts.items())
        for name, facts in chosen.items()
    ]
    return client.dialect.verbatim("\r\n".join(texts).encode())
