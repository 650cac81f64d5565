"""InetAddress: numeric addresses, names looked up, and errors that say what was wrong."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from pymuduo import COMPILED, InetAddress


def test_an_ipv4_address() -> None:
    address = InetAddress("192.0.2.7", 80)
    assert (address.ip, address.port, address.scope_id) == ("192.0.2.7", 80, 0)
    assert address.family == socket.AF_INET
    assert address.ip_port == "192.0.2.7:80"
    assert address.sockaddr == ("192.0.2.7", 80)


def test_an_ipv6_address() -> None:
    address = InetAddress("2001:db8::1", 443)
    assert (address.ip, address.port, address.scope_id) == ("2001:db8::1", 443, 0)
    assert address.family == socket.AF_INET6
    assert address.ip_port == "[2001:db8::1]:443"
    assert address.sockaddr == ("2001:db8::1", 443, 0, 0)


def test_every_spelling_of_an_ipv6_address_is_the_same_address() -> None:
    assert InetAddress("2001:0DB8:0:0:0:0:0:1", 1) == InetAddress("2001:db8::1", 1)
    assert InetAddress("2001:0DB8:0:0:0:0:0:1", 1).ip == "2001:db8::1"


@pytest.mark.parametrize("ip", ["::ffff:127.0.0.1", "::1.2.3.4", "2001:db8:0:1:1:1:1:1", "1:0:0:2:0:0:0:3"])
def test_the_spelling_is_the_kernels(ip: str) -> None:
    # A peer's address comes from the kernel; it must equal the one that the user wrote.
    assert InetAddress(ip, 1).ip == socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, ip))


def test_a_written_mapped_address_equals_the_resolved_one() -> None:
    assert InetAddress.resolve("::ffff:127.0.0.1", 5) == [InetAddress("::ffff:127.0.0.1", 5)]


def test_a_link_local_address_takes_its_interface_by_name() -> None:
    address = InetAddress("fe80::1%lo", 7)
    assert address.ip == "fe80::1"
    assert address.scope_id == socket.if_nametoindex("lo")
    assert address.sockaddr == ("fe80::1", 7, 0, address.scope_id)


def test_a_link_local_address_takes_its_interface_by_number() -> None:
    assert InetAddress("fe80::1%3", 7).scope_id == 3


def test_the_interface_is_part_of_what_makes_addresses_equal() -> None:
    assert InetAddress("fe80::1%3", 7) != InetAddress("fe80::1%4", 7)
    assert InetAddress("fe80::1%3", 7) == InetAddress("fe80::1%3", 7)


def test_an_unknown_interface_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="no interface 'nosuch0'"):
        InetAddress("fe80::1%nosuch0", 1)


def test_an_empty_interface_is_refused() -> None:
    with pytest.raises(ValueError, match="fe80::1%"):
        InetAddress("fe80::1%", 1)


def test_an_interface_number_that_the_kernel_can_not_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="99999999999999999999"):
        InetAddress("fe80::1%99999999999999999999", 1)


def test_an_ipv4_address_has_no_interface() -> None:
    with pytest.raises(ValueError, match=r"'127.0.0.1%lo'"):
        InetAddress("127.0.0.1%lo", 1)


@pytest.mark.parametrize("host", ["localhost", "", "1.2.3", "1.2.3.4.5", "256.1.1.1", "::g", "1.2.3.4:80", "[::1]"])
def test_a_host_that_is_no_numeric_address_is_refused_with_its_value(host: str) -> None:
    with pytest.raises(ValueError, match="numeric IPv4 or IPv6 address, got") as caught:
        InetAddress(host, 1)
    assert repr(host) in str(caught.value)
    assert "resolve" in str(caught.value)


@pytest.mark.parametrize("port", [-1, 65536, 70000, 1 << 40])
def test_a_port_out_of_range_is_refused_with_its_value(port: int) -> None:
    with pytest.raises(ValueError, match=rf"port must be 0..65535, got {port}"):
        InetAddress("127.0.0.1", port)


@pytest.mark.parametrize("port", [0, 65535])
def test_the_lowest_and_the_highest_port_are_taken(port: int) -> None:
    assert InetAddress("127.0.0.1", port).port == port


@pytest.mark.parametrize("port", ["80", 80.0, None, True])
def test_a_port_that_is_no_int_is_refused_with_its_value(port: Any) -> None:
    with pytest.raises(TypeError, match="port must be an int") as caught:
        InetAddress("127.0.0.1", port)
    assert repr(port) in str(caught.value)


@pytest.mark.parametrize("host", [b"127.0.0.1", 2130706433, None])
def test_a_host_that_is_no_str_is_refused_with_its_value(host: Any) -> None:
    with pytest.raises(TypeError, match="host must be a str") as caught:
        InetAddress(host, 1)
    assert repr(host) in str(caught.value)


def test_any_stands_for_every_interface() -> None:
    assert InetAddress.any(80).ip_port == "0.0.0.0:80"
    assert InetAddress.any(80, ipv6=True).ip_port == "[::]:80"
    assert InetAddress.any(80).is_any
    assert InetAddress.any(80, ipv6=True).is_any


def test_loopback_is_this_machine() -> None:
    assert InetAddress.loopback(80).ip_port == "127.0.0.1:80"
    assert InetAddress.loopback(80, ipv6=True).ip_port == "[::1]:80"
    assert not InetAddress.loopback(80).is_any


def test_equal_addresses_are_equal_and_hash_alike() -> None:
    address = InetAddress("127.0.0.1", 80)
    assert address == InetAddress.loopback(80)
    assert hash(address) == hash(InetAddress.loopback(80))
    assert len({address, InetAddress.loopback(80), InetAddress.loopback(81)}) == 2


def test_another_port_or_host_is_another_address() -> None:
    address = InetAddress("127.0.0.1", 80)
    assert address != InetAddress("127.0.0.1", 81)
    assert address != InetAddress("127.0.0.2", 80)
    assert address != ("127.0.0.1", 80)


@pytest.mark.skipif(not COMPILED, reason="plain Python can't forbid the assignment to a slot")
def test_an_address_can_not_be_changed() -> None:
    address = InetAddress("127.0.0.1", 80)
    with pytest.raises(AttributeError):
        address.port = 81
    assert address.port == 80


def test_str_is_ip_port() -> None:
    assert str(InetAddress("::1", 80)) == "[::1]:80"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "fe80::1%1"])
def test_repr_makes_the_same_address(host: str) -> None:
    address = InetAddress(host, 80)
    assert eval(repr(address)) == address


# --- resolve ---


def test_resolve_localhost_finds_loopback() -> None:
    found = InetAddress.resolve("localhost", 80)
    assert found
    assert {address.ip for address in found} <= {"127.0.0.1", "::1"}
    assert {address.port for address in found} == {80}


def test_resolve_gives_no_address_twice() -> None:
    found = InetAddress.resolve("localhost", 80)
    assert len(found) == len(set(found))


@pytest.mark.parametrize(("family", "ip"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_resolve_takes_a_number_as_it_is(family: int, ip: str) -> None:
    assert InetAddress.resolve(ip, 80, family=family) == [InetAddress(ip, 80)]


def test_resolve_of_one_family_gives_only_that() -> None:
    assert {a.family for a in InetAddress.resolve("localhost", family=socket.AF_INET)} == {socket.AF_INET}


def test_resolve_of_the_other_family_raises_os_error() -> None:
    with pytest.raises(OSError):
        InetAddress.resolve("127.0.0.1", 80, family=socket.AF_INET6)


def test_resolve_keeps_the_scope_of_a_link_local_address() -> None:
    (address,) = InetAddress.resolve("fe80::1%lo", 80)
    assert address == InetAddress("fe80::1%lo", 80)


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a" * 64 + ".invalid", "a..invalid"])
def test_resolve_of_a_name_without_address_raises_os_error(name: str) -> None:
    with pytest.raises(OSError):
        InetAddress.resolve(name, 80)


@pytest.mark.parametrize("port", [-1, 65536])
def test_resolve_refuses_a_port_out_of_range_with_its_value(port: int) -> None:
    with pytest.raises(ValueError, match=rf"port must be 0..65535, got {port}"):
        InetAddress.resolve("localhost", port)


@pytest.mark.parametrize("port", ["80", None])
def test_resolve_refuses_a_port_that_is_no_int_with_its_value(port: Any) -> None:
    with pytest.raises(TypeError, match="port must be an int") as caught:
        InetAddress.resolve("localhost", port)
    assert repr(port) in str(caught.value)


# --- parse ---


@pytest.mark.parametrize(
    ("text", "ip_port"),
    [("192.0.2.7:80", "192.0.2.7:80"), ("[2001:db8::1]:0", "[2001:db8::1]:0"), ("[::1]:65535", "[::1]:65535")],
)
def test_parse_takes_what_ip_port_gives(text: str, ip_port: str) -> None:
    assert InetAddress.parse(text).ip_port == ip_port


def test_parse_looks_a_name_up() -> None:
    assert InetAddress.parse("localhost:80") == InetAddress.resolve("localhost", 80)[0]


@pytest.mark.parametrize("text", ["", "80", ":80", "192.0.2.7", "192.0.2.7:", "here:http", "::1:80", "[::1:80", "a:-1"])
def test_parse_refuses_what_is_no_host_and_port_with_its_value(text: str) -> None:
    with pytest.raises(ValueError, match="host:port is required") as caught:
        InetAddress.parse(text)
    assert repr(text) in str(caught.value)


def test_parse_refuses_a_port_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"port must be 0..65535, got 65536"):
        InetAddress.parse("localhost:65536")


def test_parse_refuses_a_name_without_address() -> None:
    with pytest.raises(ValueError, match=r"'name\.invalid:80'"):
        InetAddress.parse("name.invalid:80")
