"""Every limit that SECURITY.md names is what the code has, and none that a codec has is left out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import imported
from pymuduo import (
    ConnectionLimits,
    ConnectionPool,
    IdleTimeouts,
    ProxyProtocol,
    TcpClient,
    UdpSocket,
    codec,
    pipe,
    start_tls,
)
from pymuduo.codec import CommandCodec, LengthHeaderCodec, LineCodec, NetstringCodec, RespCodec, VarintCodec
from pymuduo.connection_source import ConnectionSource
from pymuduo.tls import HANDSHAKE_TIMEOUT_S

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "SECURITY.md"
ROW = re.compile(r"^\| (?P<limit>.+?) \| (?P<default>.+?) \| (?P<settings>.+?) \|$", re.MULTILINE)
SETTING = re.compile(r"`(?:(\w+)\()?((?:\w+=…(?:, )?)+|\w+)\)?`")
VALUE = re.compile(r"(?:none|[\d,.]+)(?: (?:KiB|MiB|s|connections|system calls))?\b")
KIB, MIB = 1 << 10, 1 << 20


def rows() -> list[re.Match[str]]:
    """Return the rows of the page's table, its head left out."""
    return [row for row in ROW.finditer(PAGE.read_text()) if row["limit"] not in {"limit", "---"}]


def stated() -> dict[str, str]:
    """Return what the page's table says of each setting, such as ``LineCodec.max_bytes``."""
    found = {}
    for row in rows():
        names = [(owner, name) for owner, all_ in SETTING.findall(row["settings"]) for name in re.findall(r"\w+", all_)]
        values = row["default"].split(", ")
        if not names:
            continue
        if len(values) == 1:  # the same for all of them
            values *= len(names)
        for (owner, name), value in zip(names, values, strict=True):
            match = VALUE.match(value)
            assert match, f"{row['default']} is no value"
            found[f"{owner}.{name}" if owner else name] = match[0]
    return found


def written(name: str, value: float | None) -> str:
    """Return a default as the page writes it."""
    if not value:
        return "none"
    if name.endswith("_s"):
        return f"{value:g} s"
    if not name.endswith(("_bytes", "_mark")):
        return f"{value:,}"
    return f"{value / MIB:g} MiB" if value >= MIB else f"{value / KIB:g} KiB"


def constant(module: str, name: str) -> int:
    """Return a constant of a module's source: the compiled module has no name for it."""
    source = (ROOT / "src/pymuduo" / f"{module}.py").read_text()
    match = re.search(rf"^{name} = (\d+)\b", source, re.MULTILINE)
    assert match, f"{module}.{name} is no constant any more"
    return int(match[1])


def argument_of(made: Callable[..., object], name: str) -> Any:
    return inspect.signature(made).parameters[name].default


def defaults() -> dict[str, Any]:
    """Return what the code has, of everything in the table but codecs that are an extra."""

    def ignore(*args: object) -> None:
        pass

    command, resp = CommandCodec(ignore, blocks={}), RespCodec(ignore)
    limits, proxy, source = ConnectionLimits(), ProxyProtocol(["unix"]), ConnectionSource()
    return {
        "LineCodec.max_bytes": LineCodec(ignore).max_bytes,
        "NetstringCodec.max_bytes": NetstringCodec(ignore).max_bytes,
        "LengthHeaderCodec.max_bytes": LengthHeaderCodec(ignore).max_bytes,
        "VarintCodec.max_bytes": VarintCodec(ignore).max_bytes,
        "CommandCodec.max_line_bytes": command.max_line_bytes,
        "CommandCodec.max_words": command.max_words,
        "CommandCodec.max_bytes": command.max_bytes,
        "RespCodec.max_words": resp.max_words,
        "RespCodec.max_bytes": resp.max_bytes,
        "ConnectionLimits.max_connections": limits.max_connections,
        "ConnectionLimits.max_per_address": limits.max_per_address,
        "ConnectionLimits.accept_rate": None if limits.delay_s() == 0 else "a rate",
        **{f"IdleTimeouts.{name}": argument_of(IdleTimeouts, name) for name in ("read_s", "message_s", "stall_s")},
        "ProxyProtocol.timeout_s": proxy.timeout_s,
        "ProxyProtocol.max_bytes": proxy.max_bytes,
        "TcpClient.connect_timeout_s": argument_of(TcpClient, "connect_timeout_s"),
        "ConnectionPool.max_waiting": argument_of(ConnectionPool, "max_waiting"),
        "ConnectionPool.wait_s": argument_of(ConnectionPool, "wait_s"),
        "pipe.high_water_mark": argument_of(pipe, "high_water_mark"),
        "UdpSocket.max_datagram_bytes": argument_of(UdpSocket, "max_datagram_bytes"),
        "UdpSocket.max_queued_bytes": argument_of(UdpSocket, "max_queued_bytes"),
        "handshake_timeout_s": HANDSHAKE_TIMEOUT_S,
        "start_tls.timeout_s": argument_of(start_tls, "timeout_s"),
        "high_water_mark": source.high_water_mark,
        "max_output_bytes": source.max_output_bytes,
    }


def test_the_defaults_are_those_that_the_page_says():
    says, has = stated(), defaults()
    assert set(has) == {name for name in says if not name.startswith("Protobuf")}
    for name, value in has.items():
        assert says[name] == written(name, value), name


def test_so_are_those_that_nobody_can_set():
    says = {row["limit"]: row["default"] for row in rows() if row["settings"] == "fixed"}
    barren, read, read_of_tls = (
        written("max_bytes", constant(module, name))
        for module, name in [("tls", "_MAX_BARREN_BYTES"), ("event_loop", "_READ_AREA_BYTES"), ("tls", "_READ_BYTES")]
    )
    accepts, writes = constant("acceptor", "_MAX_ACCEPTS"), constant("tcp_connection", "_MAX_WRITES")
    assert says == {
        "TLS records without payload, in a row": barren,
        "accepted in one event, read in one go, written in one go": (
            f"{accepts} connections, {read} ({read_of_tls} of TLS), {writes} system calls"
        ),
    }


def test_nothing_in_the_table_is_beyond_these_tests():
    for row in rows():
        is_yours = row["settings"].startswith("your code") and row["default"].startswith("none")
        assert SETTING.search(row["settings"]) or row["settings"] == "fixed" or is_yours, row["limit"]


def test_so_are_those_of_the_protobuf_codecs():
    imported("google.protobuf")
    from google.protobuf.timestamp_pb2 import Timestamp

    from pymuduo.codec.protobuf import ProtobufCodec, ProtobufCodecLite

    made = {"ProtobufCodec": ProtobufCodec(print), "ProtobufCodecLite": ProtobufCodecLite(Timestamp, b"", print)}
    for owner, one in made.items():
        name = f"{owner}.max_bytes"
        assert stated()[name] == written(name, one.max_bytes)


def test_every_codec_is_on_the_page():
    codecs = set(codec.__all__) - {"Codec", "ProtocolError", "FixedLengthCodec"}  # which has no choice
    assert {f"{name}.max_bytes" for name in codecs} <= set(stated())
