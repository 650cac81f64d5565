"""The limits that SECURITY.md names have the defaults that it says, and none that a codec has is left out."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from conftest import imported
from pymuduo import ConnectionLimits, ProxyProtocol, TcpClient, UdpSocket, codec
from pymuduo.codec import CommandCodec, LengthHeaderCodec, LineCodec, NetstringCodec, RespCodec, VarintCodec
from pymuduo.connection_source import ConnectionSource
from pymuduo.tls import HANDSHAKE_TIMEOUT_S

PAGE = Path(__file__).parents[1] / "SECURITY.md"
ROW = re.compile(r"^\| (?P<limit>.+?) \| (?P<default>.+?) \| (?P<settings>.+?) \|$", re.MULTILINE)
SETTING = re.compile(r"`(?:(\w+)\()?((?:\w+=…(?:, )?)+|\w+)\)?`")
KIB, MIB = 1 << 10, 1 << 20


def stated() -> dict[str, str]:
    """Return what the page's table says of each setting, such as ``LineCodec.max_bytes``."""
    found = {}
    for row in ROW.finditer(PAGE.read_text()):
        for owner, names in SETTING.findall(row["settings"]):
            for name in re.findall(r"\w+", names):
                found[f"{owner}.{name}" if owner else name] = row["default"]
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


def argument_of(made: type, name: str) -> Any:
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
        "CommandCodec.max_bytes": command.max_bytes,
        "RespCodec.max_words": resp.max_words,
        "RespCodec.max_bytes": resp.max_bytes,
        "ConnectionLimits.max_connections": limits.max_connections,
        "ConnectionLimits.max_per_address": limits.max_per_address,
        "ConnectionLimits.accept_rate": None if limits.delay_s() == 0 else "a rate",
        "IdleTimeouts.read_s": None,  # it is nothing without its times
        "IdleTimeouts.message_s": None,
        "IdleTimeouts.stall_s": None,
        "ProxyProtocol.timeout_s": proxy.timeout_s,
        "ProxyProtocol.max_bytes": proxy.max_bytes,
        "TcpClient.connect_timeout_s": argument_of(TcpClient, "connect_timeout_s"),
        "UdpSocket.max_datagram_bytes": argument_of(UdpSocket, "max_datagram_bytes"),
        "UdpSocket.max_queued_bytes": argument_of(UdpSocket, "max_queued_bytes"),
        "handshake_timeout_s": HANDSHAKE_TIMEOUT_S,
        "high_water_mark": source.high_water_mark,
        "max_output_bytes": source.max_output_bytes,
    }


def test_the_defaults_are_those_that_the_page_says():
    says, has = stated(), defaults()
    assert set(has) == {name for name in says if not name.startswith("Protobuf")}
    for name, value in has.items():
        assert written(name, value) in says[name], name


def test_so_are_those_of_the_protobuf_codecs():
    imported("google.protobuf")
    from google.protobuf.timestamp_pb2 import Timestamp

    from pymuduo.codec.protobuf import ProtobufCodec, ProtobufCodecLite

    made = {"ProtobufCodec": ProtobufCodec(print), "ProtobufCodecLite": ProtobufCodecLite(Timestamp, b"", print)}
    for owner, one in made.items():
        name = f"{owner}.max_bytes"
        assert written(name, one.max_bytes) in stated()[name]


def test_every_codec_is_on_the_page():
    codecs = set(codec.__all__) - {"Codec", "ProtocolError", "FixedLengthCodec"}  # which has no choice
    assert {f"{name}.max_bytes" for name in codecs} <= set(stated())
