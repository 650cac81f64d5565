"""The PROXY protocol: the wire form both ways, whom a server believes, and the layer that takes the header."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import PATIENCE_S, call_in_loop, eventually, receive_all, receive_exactly, reset
from pymuduo import Buffer, EventLoop, InetAddress, TcpConnection
from pymuduo.layer import Layer
from pymuduo.proxy_protocol import (
    ProxyHeader,
    ProxyLayer,
    ProxyProtocol,
    ProxyProtocolError,
    ProxySsl,
    ProxyTlv,
    crc32c,
    encode_proxy_header,
    parse_proxy_header,
)
from pymuduo.unix_address import UnixAddress

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
CLIENT = InetAddress("192.0.2.1", 56324)
SERVICE = InetAddress("198.51.100.7", 443)
CLIENT6 = InetAddress("2001:db8::1", 56324)
SERVICE6 = InetAddress("2001:db8::7", 443)
LINE = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"
BINARY = encode_proxy_header(CLIENT, SERVICE)


def binary(command: int, family: int, body: bytes, size: int | None = None) -> bytes:
    """Version 2, put together by hand."""
    return SIGNATURE + bytes((command, family)) + struct.pack("!H", len(body) if size is None else size) + body


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


TCP4 = bytes((192, 0, 2, 1, 198, 51, 100, 7)) + struct.pack("!HH", 56324, 443)


def with_tlvs(*tlvs: bytes) -> bytes:
    return binary(0x21, 0x11, TCP4 + b"".join(tlvs))


# --- the wire: reading ---


def test_version_1_names_both_ends():
    assert parse_proxy_header(LINE) == (ProxyHeader(1, False, CLIENT, SERVICE), len(LINE))
    assert parse_proxy_header(b"PROXY TCP6 2001:DB8::1 2001:db8:0:0:0:0:0:7 56324 443\r\n") == (
        ProxyHeader(1, False, CLIENT6, SERVICE6),
        55,
    )


def test_version_1_may_be_as_long_as_it_gets():
    ip = b"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    line = b"PROXY TCP6 " + ip + b" " + ip + b" 65535 65535\r\n"
    found = parse_proxy_header(line)
    assert found is not None
    assert found[0].source == InetAddress(ip.decode(), 65535)
    assert found[1] == len(line) == 104
    unknown = b"PROXY UNKNOWN " + ip + b" " + ip + b" 65535 65535\r\n"
    assert parse_proxy_header(unknown) == (ProxyHeader(1), 107)


@pytest.mark.parametrize("line", [b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN \r\n", b"PROXY UNKNOWN what \xff ever\r\n"])
def test_version_1_unknown_tells_nothing_whatever_else_it_says(line):
    assert parse_proxy_header(line + b"payload") == (ProxyHeader(1), len(line))


def test_version_2_names_both_ends():
    assert parse_proxy_header(binary(0x21, 0x11, TCP4)) == (ProxyHeader(2, False, CLIENT, SERVICE), 28)
    ips = bytes.fromhex("20010db8000000000000000000000001 20010db8000000000000000000000007")
    assert parse_proxy_header(binary(0x21, 0x21, ips + struct.pack("!HH", 56324, 443))) == (
        ProxyHeader(2, False, CLIENT6, SERVICE6),
        52,
    )


def test_version_2_names_unix_sockets():
    body = struct.pack("108s108s", b"/run/client.sock", b"/run/service.sock")
    found = parse_proxy_header(binary(0x21, 0x31, body))
    assert found is not None
    assert found[0].source == UnixAddress("/run/client.sock")
    assert found[0].destination == UnixAddress("/run/service.sock")
    body = struct.pack("108s108s", b"", b"\0service")
    found = parse_proxy_header(binary(0x21, 0x31, body))
    assert found is not None
    assert found[0].source is None  # a client's socket has no name, most often
    assert found[0].destination == UnixAddress.abstract("service")


@pytest.mark.parametrize("family", [0x00, 0x11, 0x12, 0x99])
@pytest.mark.parametrize("body", [b"", TCP4, b"\xff" * 40])
def test_a_local_header_tells_nothing_whatever_its_block_says(family, body):
    header = binary(0x20, family, body)
    assert parse_proxy_header(header) == (ProxyHeader(2, True), len(header))


def test_an_unspecified_family_has_fields_but_no_addresses():
    header = binary(0x21, 0x00, tlv(ProxyTlv.UNIQUE_ID, b"id"))
    assert parse_proxy_header(header) == (ProxyHeader(2, tlvs=((ProxyTlv.UNIQUE_ID, b"id"),)), len(header))
    assert parse_proxy_header(binary(0x21, 0x00, b"")) == (ProxyHeader(2), 16)


def test_the_fields_of_version_2():
    tls = struct.pack("!BI", 0x07, 0) + tlv(0x21, b"TLSv1.3") + tlv(0x22, "Zoë".encode()) + tlv(0x23, b"AES128")
    found = parse_proxy_header(
        with_tlvs(
            tlv(ProxyTlv.ALPN, b"h2"),
            tlv(ProxyTlv.AUTHORITY, b"example.com"),
            tlv(ProxyTlv.NOOP, bytes(7)),
            tlv(ProxyTlv.UNIQUE_ID, b"\x01\x02"),
            tlv(ProxyTlv.SSL, tls),
            tlv(ProxyTlv.NETNS, b"blue"),
            tlv(0xEA, b"\x01vpce-08d2"),
            tlv(0xEA, b"again"),
        )
    )
    assert found is not None
    header = found[0]
    assert (header.alpn, header.authority, header.unique_id, header.netns) == (
        b"h2",
        "example.com",
        b"\x01\x02",
        "blue",
    )
    assert header.tlv(0xEA) == b"\x01vpce-08d2"
    assert [value for kind, value in header.tlvs if kind == 0xEA] == [b"\x01vpce-08d2", b"again"]
    assert header.tlv(ProxyTlv.NOOP) is None
    tls_header = header.ssl
    assert tls_header is not None
    assert tls_header.is_tls
    assert tls_header.client_is_verified
    assert (tls_header.version, tls_header.common_name, tls_header.cipher) == ("TLSv1.3", "Zoë", "AES128")


def test_a_header_without_fields_has_none_of_them():
    header = ProxyHeader(1)
    assert (header.alpn, header.authority, header.unique_id, header.netns, header.ssl) == (None,) * 5
    assert ProxySsl(1, 0).common_name is None


@pytest.mark.parametrize(
    ("flags", "verify", "is_verified"), [(1, 0, False), (3, 0, True), (5, 0, True), (3, 20, False)]
)
def test_a_client_is_verified_only_if_it_gave_a_certificate_and_that_was_good(flags, verify, is_verified):
    # Senders leave "verify" at 0, which means "good", when there was no certificate to verify.
    assert ProxySsl(flags, verify).client_is_verified is is_verified


def test_crc32c_is_castagnolis():
    assert crc32c(b"") == 0
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert crc32c(bytearray(b"\xff" * 32)) == 0x62A8AB43
    assert crc32c(memoryview(bytes(range(32)))) == 0x46DD794E


def test_a_checksum_is_verified():
    zeroed = with_tlvs(tlv(ProxyTlv.CRC32C, bytes(4)), tlv(ProxyTlv.UNIQUE_ID, b"id"))
    header = zeroed.replace(tlv(ProxyTlv.CRC32C, bytes(4)), tlv(ProxyTlv.CRC32C, crc32c(zeroed).to_bytes(4, "big")))
    assert parse_proxy_header(header) is not None
    kind_at = header.index(tlv(ProxyTlv.CRC32C, b"")[:1] + b"\x00\x04")
    for at in {*range(16, len(header))} - {kind_at}:  # another type there, and it is no checksum
        damaged = bytearray(header)
        damaged[at] ^= 0x10
        with pytest.raises(ProxyProtocolError):
            parse_proxy_header(damaged)


MALFORMED = {
    "a request": (b"GET / HTTP/1.1\r\n", "begins with"),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01", "begins with"),
    "lower case": (b"proxy", "begins with"),
    "another kind": (b"PROXY TCP5", "begins with"),
    "datagrams in version 1": (b"PROXY UDP4", "begins with"),
    "no kind": (b"PROXY\r\n", "begins with"),
    "nothing behind the kind": (b"PROXY TCP4\r\n", "begins with"),
    "two spaces first": (b"PROXY  TCP4", "begins with"),
    "a longer word than UNKNOWN": (b"PROXY UNKNOWNS", "expected"),
    "LF alone": (LINE.replace(b"\r\n", b"\n"), "CR and LF"),
    "LF alone behind UNKNOWN": (b"PROXY UNKNOWN\nGET / HTTP/1.0\r\n", "CR and LF"),
    "LF alone in UNKNOWN": (b"PROXY UNKNOWN x\nGET / HTTP/1.0\r\n", "CR and LF"),
    "CR alone": (LINE.replace(b"\r\n", b"\rx"), "CR and LF"),
    "CR alone in UNKNOWN": (b"PROXY UNKNOWN x\ry", "CR and LF"),
    "CR twice": (LINE.replace(b"\r\n", b"\r\r\n"), "CR and LF"),
    "a letter in IPv4": (b"PROXY TCP4 192.0.2.a", "b'a'"),
    "a zone in IPv6": (b"PROXY TCP6 fe80::1%", "b'%'"),
    "a tab": (b"PROXY TCP4 192.0.2.1\t", "'\\\\t'"),
    "a NUL": (b"PROXY TCP4 192.0.2.1\0", "'\\\\x00'"),
    "a minus": (b"PROXY TCP4 192.0.2.1 198.51.100.7 -1", "b'-'"),
    "IPv6 in TCP4": (b"PROXY TCP4 2001:", "b':'"),
    "IPv4 in TCP6": (LINE.replace(b"TCP4", b"TCP6"), "IPv6 address"),
    "a part of an address too much": (LINE.replace(b"192.0.2.1", b"192.0.2.1.1"), "IPv4 address"),
    "a part of an address too big": (LINE.replace(b"192.0.2.1", b"192.0.2.256"), "IPv4 address"),
    "a leading zero in an address": (LINE.replace(b"192.0.2.1", b"192.0.2.01"), "IPv4 address"),
    "two double colons": (b"PROXY TCP6 1::2::3 ::1 1 2\r\n", "IPv6 address"),
    "no address": (b"PROXY TCP4  198.51.100.7 56324 443\r\n", "IPv4 address"),
    "a port missing": (LINE.replace(b" 443", b""), "two ports"),
    "a port too much": (LINE.replace(b" 443", b" 443 1"), "two ports"),
    "a space at the end": (LINE.replace(b"\r\n", b" \r\n"), "two ports"),
    "an empty port": (LINE.replace(b" 443", b" "), "a port is"),
    "a leading zero in a port": (LINE.replace(b" 443", b" 0443"), "a port is"),
    "two zeros for a port": (LINE.replace(b" 443", b" 00"), "a port is"),
    "a port too big": (LINE.replace(b" 443", b" 65536"), "a port is"),
    "a dot in a port": (LINE.replace(b" 443", b" 4.3"), "a port is"),
    "too long a line": (b"PROXY UNKNOWN " + bytes(93), "at most 107"),
    "too long a line, ended": (b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", "at most 107"),
    "the signature's first lines only": (b"\r\n\r\nGET", "begins with"),
    "version 1 in binary": (SIGNATURE + b"\x11", "version 2"),
    "version 3": (SIGNATURE + b"\x31", "version 2"),
    "command 2": (SIGNATURE + b"\x22", "command 0 or 1"),
    "datagrams, IPv4": (SIGNATURE + b"\x21\x12", "datagrams"),
    "datagrams, IPv6": (SIGNATURE + b"\x21\x22", "datagrams"),
    "datagrams, Unix": (SIGNATURE + b"\x21\x32", "datagrams"),
    "an unknown family": (SIGNATURE + b"\x21\x41", "unknown family"),
    "an unknown protocol": (SIGNATURE + b"\x21\x13", "unknown family"),
    "a family without protocol": (SIGNATURE + b"\x21\x10", "unknown family"),
    "too short for IPv4": (binary(0x21, 0x11, b"", 11), "no room"),
    "too short for IPv6": (binary(0x21, 0x21, b"", 35), "no room"),
    "too short for Unix": (binary(0x21, 0x31, b"", 215), "no room"),
    "too long": (binary(0x21, 0x11, b"", 4096 - 15), "at most 4096"),
    "too long and local": (binary(0x20, 0x00, b"", 0xFFFF), "at most 4096"),
    "half a field": (with_tlvs(b"\x01"), "left over"),
    "a field cut off": (with_tlvs(tlv(1, b"h2")[:-1]), "ends behind"),
    "a field longer than the header": (with_tlvs(b"\x01\xff\xff"), "ends behind"),
    "a TLS field too short": (with_tlvs(tlv(ProxyTlv.SSL, bytes(4))), "5 bytes at least"),
    "a field cut off in the TLS field": (with_tlvs(tlv(ProxyTlv.SSL, bytes(5) + b"\x21\x00\x02x")), "ends behind"),
    "half a field in the TLS field": (with_tlvs(tlv(ProxyTlv.SSL, bytes(5) + b"\x21\x00")), "left over"),
    "a CN that is no text": (with_tlvs(tlv(ProxyTlv.SSL, bytes(5) + tlv(ProxyTlv.SSL_CN, b"\xff"))), "SSL_CN"),
    "a cipher that is no ASCII": (
        with_tlvs(tlv(ProxyTlv.SSL, bytes(5) + tlv(ProxyTlv.SSL_CIPHER, b"\xff"))),
        "SSL_CIPHER",
    ),
    "an authority that is no text": (with_tlvs(tlv(ProxyTlv.AUTHORITY, b"\xff")), "AUTHORITY"),
    "a name space that is no ASCII": (with_tlvs(tlv(ProxyTlv.NETNS, "ë".encode())), "NETNS"),
    "too long a unique id": (with_tlvs(tlv(ProxyTlv.UNIQUE_ID, bytes(129))), "at most 128"),
    "a checksum of 3 bytes": (with_tlvs(tlv(ProxyTlv.CRC32C, bytes(3))), "of 4 bytes"),
    "two checksums": (with_tlvs(tlv(ProxyTlv.CRC32C, bytes(4)), tlv(ProxyTlv.CRC32C, bytes(4))), "is not one"),
    "a wrong checksum": (with_tlvs(tlv(ProxyTlv.CRC32C, bytes(4))), "does not match"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_header_is_refused_with_the_reason_as_soon_as_it_is_certain(name):
    data, reason = MALFORMED[name]
    with pytest.raises(ProxyProtocolError, match=reason):
        parse_proxy_header(data)
    with pytest.raises(ProxyProtocolError, match=reason):
        parse_proxy_header(data + b"more of it\r\n" * 20)
    # The reason may be another before the end is there, but nothing that was accepted is taken back.
    refused_at = next(n for n in range(len(data) + 1) if refuses(data[:n]))
    assert all(refuses(data[:n]) for n in range(refused_at, len(data) + 1))


def refuses(data: bytes) -> bool:
    try:
        assert parse_proxy_header(data) is None
    except ProxyProtocolError:
        return True
    return False


@pytest.mark.parametrize("name", ["a request", "another kind", "version 3", "an unknown family", "a letter in IPv4"])
def test_garbage_is_refused_at_its_first_wrong_byte(name):
    data = MALFORMED[name][0]
    refused_at = next(n for n in range(len(data) + 1) if refuses(data[:n]))
    assert refused_at == (1 if name == "a request" else len(data))


def test_a_longer_header_can_be_allowed_or_a_shorter_one_demanded():
    header = with_tlvs(tlv(0xE0, bytes(5000)))
    assert parse_proxy_header(header, max_bytes=len(header)) is not None
    with pytest.raises(ProxyProtocolError, match="at most"):
        parse_proxy_header(header, max_bytes=len(header) - 1)
    with pytest.raises(ProxyProtocolError, match="at most 20"):
        parse_proxy_header(BINARY, max_bytes=20)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_bytes_is_parsed(kind):
    assert parse_proxy_header(kind(BINARY)) == (ProxyHeader(2, False, CLIENT, SERVICE), len(BINARY))


def test_a_header_is_immutable():
    found = parse_proxy_header(LINE)
    assert found is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        found[0].source = None  # type: ignore[misc]
    hash(found[0])


# --- the wire: writing ---

ports = st.integers(0, 65535)
ipv4 = st.builds(InetAddress, st.ip_addresses(v=4).map(str), ports)
ipv6 = st.builds(InetAddress, st.ip_addresses(v=6).map(str), ports)
paths = st.binary(min_size=1, max_size=100).filter(lambda b: b"\0" not in b)
unix = st.one_of(
    st.builds(lambda b: UnixAddress("/" + os.fsdecode(b)), paths),
    st.builds(UnixAddress.abstract, paths),
)
other_kinds = st.integers(0, 255).filter(lambda kind: kind not in set(ProxyTlv))
texts = st.text(max_size=20).map(str.encode)
ssl_fields = st.builds(
    lambda flags, verify, inner: struct.pack("!BI", flags, verify) + b"".join(tlv(*field) for field in inner),
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    st.lists(st.one_of(st.tuples(st.just(0x22), texts), st.tuples(other_kinds, st.binary(max_size=5))), max_size=3),
)
fields = st.lists(
    st.one_of(
        st.tuples(other_kinds, st.binary(max_size=40)),
        st.tuples(st.just(int(ProxyTlv.AUTHORITY)), texts),
        st.tuples(st.just(int(ProxyTlv.UNIQUE_ID)), st.binary(max_size=128)),
        st.tuples(st.just(int(ProxyTlv.SSL)), ssl_fields),
    ),
    max_size=4,
)
addresses = st.one_of(st.tuples(ipv4, ipv4), st.tuples(ipv6, ipv6), st.tuples(unix, unix), st.just((None, None)))


@given(addresses, fields, st.none() | st.integers(0, 4), st.binary(max_size=30), st.data())
def test_what_is_encoded_is_parsed_back_however_it_is_split(ends, tlvs, checksum_at, payload, data):
    sent = list(tlvs)
    if checksum_at is not None:
        sent.insert(checksum_at, (int(ProxyTlv.CRC32C), b""))
    header = encode_proxy_header(*ends, tlvs=sent)
    split = data.draw(st.integers(0, len(header) - 1))
    assert parse_proxy_header(header[:split]) is None
    found = parse_proxy_header(header + payload)
    assert found is not None
    parsed, size = found
    assert size == len(header)
    assert (parsed.version, parsed.is_local, parsed.source, parsed.destination) == (2, False, *ends)
    assert [kind for kind, _ in parsed.tlvs] == [kind for kind, _ in sent]
    assert [field for field in parsed.tlvs if field[0] != ProxyTlv.CRC32C] == tlvs
    # The fields of a header that was received can be passed on: the checksum is made anew.
    again = encode_proxy_header(*ends, tlvs=parsed.tlvs)
    assert again == header


@given(st.one_of(st.tuples(ipv4, ipv4), st.tuples(ipv6, ipv6)), st.binary(max_size=30), st.data())
def test_what_is_encoded_as_a_line_is_parsed_back_however_it_is_split(ends, payload, data):
    header = encode_proxy_header(*ends, version=1)
    split = data.draw(st.integers(0, len(header) - 1))
    assert parse_proxy_header(header[:split]) is None
    assert parse_proxy_header(header + payload) == (ProxyHeader(1, False, *ends), len(header))


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda b: binary(0x21, 0x11, TCP4 + b))))
def test_any_bytes_are_a_header_or_the_beginning_of_one_or_refused(data):
    with contextlib.suppress(ProxyProtocolError):
        found = parse_proxy_header(data)
        assert found is None or found[1] <= len(data)


def test_what_is_encoded_is_what_the_specification_shows():
    assert encode_proxy_header(CLIENT, SERVICE, version=1) == LINE
    assert encode_proxy_header(CLIENT, SERVICE) == binary(0x21, 0x11, TCP4)
    assert encode_proxy_header(None, None, is_local=True) == binary(0x20, 0x00, b"")
    assert encode_proxy_header(None, None) == encode_proxy_header(CLIENT, None) == binary(0x21, 0x00, b"")
    assert encode_proxy_header(None, None, version=1) == b"PROXY UNKNOWN\r\n"
    assert encode_proxy_header(UnixAddress("/a"), UnixAddress("/b"), version=1) == b"PROXY UNKNOWN\r\n"


@pytest.mark.parametrize(
    ("ends", "settings", "reason"),
    [
        ((CLIENT, SERVICE6), {}, "one family"),
        ((CLIENT, SERVICE6), {"version": 1}, "one family"),
        ((CLIENT, UnixAddress("/a")), {}, "one kind"),
        ((CLIENT, SERVICE), {"version": 3}, "version 1 or 2"),
        ((CLIENT, SERVICE), {"version": 1, "tlvs": [(1, b"h2")]}, "no fields"),
        ((CLIENT, SERVICE), {"is_local": True}, "local"),
        ((None, None), {"is_local": True, "version": 1}, "local"),
        ((None, None), {"is_local": True, "tlvs": [(1, b"h2")]}, "local"),
        ((CLIENT, SERVICE), {"tlvs": [(256, b"")]}, "0 to 255"),
        ((CLIENT, SERVICE), {"tlvs": [(-1, b"")]}, "0 to 255"),
        ((CLIENT, SERVICE), {"tlvs": [(0xE0, bytes(65536))]}, "65535"),
        ((CLIENT, SERVICE), {"tlvs": [(0xE0, bytes(33000))] * 2}, "65535"),
        ((CLIENT, SERVICE), {"tlvs": [(3, b""), (3, b"")]}, "one checksum"),
    ],
)
def test_what_no_header_can_say_is_refused(ends, settings, reason):
    with pytest.raises(ValueError, match=reason):
        encode_proxy_header(*ends, **settings)


# --- whom to believe ---


@pytest.mark.parametrize(
    ("trusted", "ip", "is_trusted"),
    [
        (["10.0.0.0/8"], "10.255.0.1", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        (["10.0.0.0/8"], "::ffff:10.0.0.1", True),
        (["::ffff:10.0.0.0/104"], "10.0.0.1", True),
        (["::ffff:10.0.0.0/104"], "::ffff:10.0.0.1", True),
        (["::ffff:10.0.0.0/104"], "::ffff:11.0.0.1", False),
        (["192.0.2.1"], "192.0.2.1", True),
        (["192.0.2.1"], "192.0.2.2", False),
        (["::1/128", "192.0.2.1"], "::1", True),
        (["::1/128"], "127.0.0.1", False),
        (["2001:db8::/32"], "2001:db8:1::5", True),
        (["0.0.0.0/0"], "2001:db8::1", False),
        (["::/0"], "2001:db8::1", True),
        (["fe80::/10"], "fe80::1%1", True),
        (["unix"], "127.0.0.1", False),
    ],
)
def test_who_is_in_a_trusted_network_is_trusted(trusted, ip, is_trusted):
    assert ProxyProtocol(trusted).is_trusted(InetAddress(ip, 1)) is is_trusted


def test_unix_sockets_are_trusted_by_that_word():
    assert ProxyProtocol(["10.0.0.0/8", "unix"]).is_trusted(UnixAddress("/run/proxy.sock"))
    assert not ProxyProtocol(["0.0.0.0/0", "::/0"]).is_trusted(UnixAddress("/run/proxy.sock"))


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "reason"),
    [
        ("10.0.0.0/8", {}, TypeError, "a list of networks"),
        ([], {}, ValueError, "nobody is trusted"),
        (["proxy.example"], {}, ValueError, "proxy.example"),
        (["10.0.0.1/8"], {}, ValueError, "host bits"),
        (["10.0.0.0/8"], {"timeout_s": 0}, ValueError, "timeout_s"),
        (["10.0.0.0/8"], {"timeout_s": float("nan")}, ValueError, "timeout_s"),
        (["10.0.0.0/8"], {"max_bytes": 231}, ValueError, "232..65551, got 231"),
        (["10.0.0.0/8"], {"max_bytes": 65552}, ValueError, "232..65551"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, settings, error, reason):
    with pytest.raises(error, match=reason):
        ProxyProtocol(arguments, **settings)


def test_settings_are_immutable():
    config = ProxyProtocol(iter(["10.0.0.0/8"]))
    assert config == ProxyProtocol(["10.0.0.0/8"])
    assert config.trusted == ("10.0.0.0/8",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.allow_direct = True  # type: ignore[misc]


# --- the layer ---

TRUSTED = ProxyProtocol(["127.0.0.0/8"], timeout_s=PATIENCE_S)
STRANGERS = ProxyProtocol(["192.0.2.0/24"], timeout_s=PATIENCE_S)


class Served:
    """A connection in a loop's thread that waits for a header; a plain socket is its peer. It echoes."""

    def __init__(self, loop: EventLoop, config: ProxyProtocol, next_layer: Layer | None = None) -> None:
        self.loop = loop
        self.seen: list[Any] = []
        self.received = bytearray()
        self.up = threading.Event()
        self.ended = threading.Event()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = socket.create_connection(listener.getsockname(), timeout=PATIENCE_S)
            accepted, _ = listener.accept()
        self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted.setblocking(False)
        local, peer = InetAddress(*accepted.getsockname()), InetAddress(*accepted.getpeername())
        self.real_ends = peer, local
        self.connection = TcpConnection(loop, "served", accepted.detach(), local, peer)
        self.connection.connection_callback = self.on_connection
        self.connection.message_callback = self.on_message
        self.connection.set_owner(self)
        self.layer = ProxyLayer(config, next_layer)

    def establish(self) -> None:
        """Begin to serve, in the loop's thread."""

        def begin() -> None:
            self.connection.set_layer(self.layer)
            self.connection.connect_established()

        call_in_loop(self.loop, begin)

    def on_connection(self, connection: TcpConnection) -> None:
        self.seen.append("up" if connection.connected else "down")
        if connection.connected:
            self.up.set()

    def on_message(self, connection: TcpConnection, buffer: Buffer, when: object) -> None:
        data = buffer.retrieve_all_as_bytes()
        self.received += data
        connection.send(data)

    def welcome(self, connection: TcpConnection) -> bool:
        return True

    def remove_connection(self, connection: TcpConnection) -> None:
        self.loop.queue_in_loop(self._forget)

    def _forget(self) -> None:
        self.connection.connect_destroyed()
        self.ended.set()

    @property
    def ends(self) -> tuple[object, object]:
        return self.connection.peer_address, self.connection.local_address

    def ends_with(self, error: type[Exception], reason: str) -> None:
        """Wait for the end, which must have this reason; the connection must never have been up."""
        assert self.ended.wait(PATIENCE_S)
        assert isinstance(self.connection.error, error), repr(self.connection.error)
        assert reason in str(self.connection.error)
        assert self.seen == []
        assert self.received == b""

    def close(self) -> None:
        self.client.close()
        self.connection.force_close()
        assert self.ended.wait(PATIENCE_S)


@pytest.fixture
def wait_for_header(loop_thread: EventLoop) -> Iterator[Callable[..., Served]]:
    """Return a function that makes a connection which waits for its header; what is *sent* is there before."""
    with contextlib.ExitStack() as stack:

        def make(config: ProxyProtocol = TRUSTED, next_layer: Layer | None = None, sent: bytes = b"") -> Served:
            served = Served(loop_thread, config, next_layer)
            stack.callback(served.close)
            served.client.sendall(sent)
            served.establish()
            return served

        yield make


@pytest.mark.parametrize("header", [LINE, BINARY], ids=["line", "binary"])
def test_the_connection_comes_up_with_the_addresses_that_the_header_names(wait_for_header, header):
    served = wait_for_header()
    served.client.sendall(header)
    assert served.up.wait(PATIENCE_S)
    assert served.ends == (CLIENT, SERVICE)
    assert served.connection.proxy_header.source == CLIENT
    served.client.sendall(b"hello")
    assert receive_exactly(served.client, 5) == b"hello"


@pytest.mark.parametrize("header", [LINE, BINARY], ids=["line", "binary"])
def test_a_header_and_payload_in_one_segment_are_told_apart(wait_for_header, header):
    served = wait_for_header()
    payload = bytes(range(256)) * 40
    served.client.sendall(header + payload)
    assert receive_exactly(served.client, len(payload)) == payload
    assert served.ends == (CLIENT, SERVICE)


@pytest.mark.parametrize("header", [LINE, with_tlvs(tlv(0xE0, bytes(20)))], ids=["line", "binary"])
def test_a_header_may_come_byte_by_byte(wait_for_header, header):
    served = wait_for_header()
    for at in range(len(header) - 1):
        served.client.sendall(header[at : at + 1])
        eventually(lambda: unread(served) == 0)
    assert served.seen == []
    served.client.sendall(header[-1:] + b"hello")
    assert receive_exactly(served.client, 5) == b"hello"
    assert served.ends == (CLIENT, SERVICE)


def unread(served: Served) -> int:
    """Bytes in the kernel that the server has not taken."""
    with socket.socket(fileno=os.dup(served.connection.fd)) as sock:
        try:
            return len(sock.recv(4096, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return 0


def test_an_unfinished_header_does_not_keep_the_loop_busy(wait_for_header):
    served = wait_for_header()
    served.client.sendall(BINARY[:20])
    eventually(lambda: unread(served) == 0)
    polls: list[int] = []
    done = threading.Event()

    def count() -> None:
        polls.append(served.loop.iteration)
        if len(polls) == 2:
            done.set()
        else:
            served.loop.run_after(0.05, count)

    served.loop.queue_in_loop(count)
    assert done.wait(PATIENCE_S)
    assert polls[1] - polls[0] < 10  # it spun thousands of times


def test_a_second_header_is_payload(wait_for_header):
    served = wait_for_header()
    spoofed = encode_proxy_header(InetAddress("203.0.113.9", 1), SERVICE)
    served.client.sendall(BINARY + spoofed + LINE)
    assert receive_exactly(served.client, len(spoofed + LINE)) == spoofed + LINE
    assert served.ends == (CLIENT, SERVICE)
    served.client.sendall(spoofed)
    assert receive_exactly(served.client, len(spoofed)) == spoofed
    assert served.ends == (CLIENT, SERVICE)


@pytest.mark.parametrize(
    "header",
    [b"PROXY UNKNOWN\r\n", encode_proxy_header(None, None), encode_proxy_header(None, None, is_local=True)],
    ids=["line", "unspecified", "local"],
)
def test_a_header_that_names_nobody_leaves_the_real_addresses(wait_for_header, header):
    served = wait_for_header()
    served.client.sendall(header + b"hello")
    assert receive_exactly(served.client, 5) == b"hello"
    assert served.ends == served.real_ends
    assert served.connection.proxy_header.source is None
    assert served.connection.proxy_header.is_local is (header[12] == 0x20)


def test_a_checked_and_left_connection_comes_up_and_goes_down(wait_for_header):
    # What a load balancer's health check does.
    served = wait_for_header()
    served.client.sendall(encode_proxy_header(None, None, is_local=True))
    served.client.shutdown(socket.SHUT_WR)
    assert served.ended.wait(PATIENCE_S)
    assert served.seen == ["up", "down"]
    assert served.connection.error is None


def test_a_stranger_is_refused_before_a_byte_is_read(wait_for_header):
    served = wait_for_header(STRANGERS)
    served.ends_with(ProxyProtocolError, "is no trusted proxy")
    assert served.client.recv(1) == b""
    assert served.ends == served.real_ends


def test_a_strangers_header_is_payload_where_strangers_are_served(wait_for_header):
    served = wait_for_header(dataclasses.replace(STRANGERS, allow_direct=True))
    assert served.up.wait(PATIENCE_S)
    served.client.sendall(BINARY)
    assert receive_exactly(served.client, len(BINARY)) == BINARY
    assert served.ends == served.real_ends
    assert served.connection.proxy_header is None


@pytest.mark.parametrize("sent", [b"", LINE[:-1], BINARY[:13]], ids=["nothing", "half a line", "half a header"])
def test_a_header_that_takes_too_long_ends_the_connection(wait_for_header, sent):
    served = wait_for_header(dataclasses.replace(TRUSTED, timeout_s=0.05))
    with contextlib.suppress(OSError):  # it may be over already
        served.client.sendall(sent)
    served.ends_with(TimeoutError, "within 0.05 s")


def test_the_time_ends_with_the_header(wait_for_header):
    served = wait_for_header(dataclasses.replace(TRUSTED, timeout_s=0.05), sent=BINARY)
    assert served.up.wait(PATIENCE_S)
    later = threading.Event()
    served.loop.run_after(0.1, later.set)
    assert later.wait(PATIENCE_S)
    served.client.sendall(b"hello")
    assert receive_exactly(served.client, 5) == b"hello"


@pytest.mark.parametrize("sent", [b"", LINE[:-1], BINARY[:13]], ids=["nothing", "half a line", "half a header"])
def test_a_peer_that_leaves_before_its_header_is_complete_was_never_there(wait_for_header, sent):
    served = wait_for_header()
    served.client.sendall(sent)
    served.client.shutdown(socket.SHUT_WR)
    served.ends_with(ProxyProtocolError, f"({len(sent)} bytes)")
    assert served.client.recv(1) == b""


@pytest.mark.parametrize("sent", [b"", LINE[:-1], BINARY[:13]], ids=["nothing", "half a line", "half a header"])
def test_a_reset_before_the_header_is_complete_ends_the_connection(wait_for_header, sent):
    served = wait_for_header()
    served.client.sendall(sent)
    eventually(lambda: unread(served) == 0)
    reset(served.client)
    served.ends_with(ConnectionResetError, "reset")


def test_a_reset_behind_the_header_ends_the_connection(wait_for_header):
    served = wait_for_header()
    served.client.sendall(BINARY)
    assert served.up.wait(PATIENCE_S)
    reset(served.client)
    assert served.ended.wait(PATIENCE_S)
    assert served.seen == ["up", "down"]
    assert isinstance(served.connection.error, ConnectionResetError)


@pytest.mark.parametrize("name", ["a request", "a TLS hello", "LF alone", "datagrams, IPv4", "too long"])
def test_a_peer_that_sends_something_else_is_cut_off(wait_for_header, name):
    data, _ = MALFORMED[name]
    served = wait_for_header()
    served.client.sendall(data)
    served.ends_with(ProxyProtocolError, "PROXY")
    with contextlib.suppress(ConnectionResetError):  # what it sent was not read
        assert served.client.recv(1) == b""


def test_a_connection_closed_while_it_waits_leaves_nothing(wait_for_header):
    served = wait_for_header()
    served.client.sendall(BINARY[:13])
    served.connection.force_close()
    assert served.ended.wait(PATIENCE_S)
    assert served.seen == []
    assert served.client.recv(1) == b""


def test_a_default_time_out_of_the_program_changes_nothing(wait_for_header):
    served = wait_for_header()
    socket.setdefaulttimeout(PATIENCE_S)
    try:
        served.client.sendall(BINARY)
        assert served.up.wait(PATIENCE_S)
    finally:
        socket.setdefaulttimeout(None)


class Door(Layer):
    """A next layer that lets the connection come up when the peer has said the word, and then gives way."""

    def __init__(self) -> None:
        super().__init__()
        self.holds_up = True
        self.events: list[str] = []
        self.peer_address: object = None

    def start(self) -> None:
        assert self.connection is not None
        self.events.append("start")
        self.peer_address = self.connection.peer_address

    def read(self, into: Buffer) -> int:
        connection = self.connection
        assert connection is not None
        with socket.socket(fileno=os.dup(connection.fd)) as sock:
            word = sock.recv(6)
        self.events.append(word.decode())
        connection.set_layer(None)
        connection.layer_is_ready()
        return -11

    def detach(self) -> None:
        super().detach()
        self.events.append("detach")


@pytest.mark.parametrize("allow_direct", [False, True])
def test_the_next_layer_finds_the_socket_as_if_there_had_been_no_header(wait_for_header, allow_direct):
    door = Door()
    config = dataclasses.replace(STRANGERS, allow_direct=True) if allow_direct else TRUSTED
    served = wait_for_header(config, door)
    assert served.seen == []
    served.client.sendall((b"" if allow_direct else BINARY) + b"sesame" + b"hello")
    assert receive_exactly(served.client, 5) == b"hello"
    assert door.events == ["start", "sesame", "detach"]
    assert door.peer_address == (served.real_ends[0] if allow_direct else CLIENT)


def test_the_next_layer_of_a_refused_connection_never_starts(wait_for_header):
    door = Door()
    served = wait_for_header(STRANGERS, door)
    served.ends_with(ProxyProtocolError, "is no trusted proxy")
    assert door.events == []


# --- a server ---


def echo(connection: TcpConnection, buffer: Buffer, when: object) -> None:
    connection.send(buffer)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_server_serves_whom_the_header_names(serve, threads):
    seen: list[object] = []

    def on_connection(connection: TcpConnection) -> None:
        seen.append((connection.connected, connection.peer_address, connection.local_address))

    server = serve(threads, proxy_protocol=TRUSTED, connection_callback=on_connection, message_callback=echo)
    with server.connect() as client:
        client.sendall(BINARY + b"hello")
        assert receive_exactly(client, 5) == b"hello"
    eventually(lambda: seen == [(True, CLIENT, SERVICE), (False, CLIENT, SERVICE)])
    eventually(lambda: server.server.connection_count == 0)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize(
    ("config", "sent", "error"),
    [
        (STRANGERS, b"", ProxyProtocolError),
        (TRUSTED, b"GET / HTTP/1.1\r\n\r\n", ProxyProtocolError),
        (dataclasses.replace(TRUSTED, timeout_s=0.05), b"", TimeoutError),
    ],
    ids=["stranger", "garbage", "nothing"],
)
def test_a_server_tells_of_peers_who_never_came_up(serve, threads, config, sent, error):
    seen: list[object] = []
    failed: list[Any] = []
    server = serve(
        threads,
        proxy_protocol=config,
        connection_callback=seen.append,
        message_callback=echo,
        handshake_failed_callback=lambda connection, error: failed.append((connection, error)),
    )
    with server.connect() as client:
        with contextlib.suppress(OSError):  # it may be over already
            client.sendall(sent)
        with contextlib.suppress(ConnectionResetError):  # what it sent was not read
            assert receive_all(client) == b""
    eventually(lambda: failed)
    connection, reason = failed[0]
    assert type(reason) is error
    assert connection.error is reason
    assert seen == []
    eventually(lambda: server.server.connection_count == 0)


def test_a_server_that_stops_lets_go_of_peers_who_have_not_said_who_they_are(serve):
    server = serve(2, proxy_protocol=TRUSTED, message_callback=echo)
    with server.connect() as silent, server.connect() as slow:
        slow.sendall(BINARY[:13])
        eventually(lambda: server.server.connection_count == 2)
        server.server.stop(0)
        assert server.server.join(PATIENCE_S)
        for client in (silent, slow):
            with contextlib.suppress(ConnectionResetError):
                assert receive_all(client) == b""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with the key and the certificate of localhost, signed by itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        if os.environ.get("PYMUDUO_ALL_CLIENTS"):
            pytest.fail("openssl is not installed")
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificate")
    make = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    make += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", "key", "-out", "crt"]
    subprocess.run(make, cwd=folder, check=True, capture_output=True, timeout=PATIENCE_S)
    path = folder / "localhost.pem"
    path.write_bytes((folder / "key").read_bytes() + (folder / "crt").read_bytes())
    return path


@pytest.mark.parametrize("header", [LINE, BINARY], ids=["line", "binary"])
@pytest.mark.parametrize("threads", [0, 2])
def test_a_header_and_a_tls_hello_in_one_segment_are_told_apart(serve, threads, header, certificate):
    seen: list[object] = []

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        seen.append(connection.peer_address)
        connection.send(buffer)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = serve(threads, proxy_protocol=TRUSTED, ssl_context=context, message_callback=on_message)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_context = ssl.create_default_context(cafile=str(certificate))
    tls = client_context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with server.connect() as client:

        def step(call: Callable[[], Any]) -> Any:
            while True:
                try:
                    return call()
                except ssl.SSLWantReadError:
                    client.sendall(outgoing.read())
                    chunk = client.recv(1 << 16)
                    assert chunk, "the server hung up"
                    incoming.write(chunk)

        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        client.sendall(header + outgoing.read())
        step(tls.do_handshake)
        tls.write(b"hello")
        client.sendall(outgoing.read())
        assert step(lambda: tls.read(5)) == b"hello"
    assert seen == [CLIENT]
