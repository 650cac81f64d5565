"""UdpSocket: datagrams both ways, to and from whom, errors that come back, and its end."""

from __future__ import annotations

import errno
import gc
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import PATIENCE_S, call_in_loop, eventually
from pymuduo import EventLoop, InetAddress, Socket, UdpSocket, UnixAddress
from targets import nobody

IP_RECVERR = 11  # the socket module has it from Python 3.14 on


class Heard:
    """A UdpSocket in a loop's thread, and what it was told."""

    def __init__(self, loop: EventLoop, *arguments: Any, **settings: Any) -> None:
        self.datagrams: list[tuple[bytes, Any]] = []
        self.errors: list[OSError] = []
        self.udp = call_in_loop(loop, lambda: UdpSocket(loop, *arguments, **settings))
        self.udp.message_callback = lambda udp, data, sender, when: self.datagrams.append((data, sender))
        self.udp.error_callback = lambda udp, error: self.errors.append(error)
        self.udp.start()


@pytest.fixture
def hear(loop_thread: EventLoop) -> Iterator[Callable[..., Heard]]:
    """Return a function that starts sockets; they are closed at the end."""
    made: list[Heard] = []

    def make(*arguments: Any, **settings: Any) -> Heard:
        made.append(Heard(loop_thread, *arguments, **settings))
        return made[-1]

    yield make
    for one in made:
        one.udp.close()
    call_in_loop(loop_thread, lambda: None)
    assert all(one.udp.fileno() == -1 for one in made)


def peer(address: Any, *, bound_to: str | None = None) -> socket.socket:
    """Return a plain blocking socket that sends to *address* and hears its answers."""
    sock = socket.socket(address.family, socket.SOCK_DGRAM)
    sock.settimeout(PATIENCE_S)
    if bound_to is not None:
        sock.bind(bound_to)
    sock.connect(address.sockaddr)
    return sock


@pytest.mark.parametrize("ipv6", [False, True])
def test_datagrams_come_with_their_sender_and_can_be_answered(hear, ipv6):
    heard = hear(InetAddress.loopback(0, ipv6=ipv6))
    heard.udp.message_callback = lambda udp, data, sender, when: udp.send_to(data[::-1], sender)
    assert heard.udp.address.port > 0
    with peer(heard.udp.address) as one, peer(heard.udp.address) as other:
        one.send(b"one")
        other.send(b"other")
        one.send(b"")
        assert one.recv(100) == b"eno"
        assert other.recv(100) == b"rehto"
        assert one.recv(100) == b""
    counted = call_in_loop(heard.udp.loop, lambda: (heard.udp.datagrams_received, heard.udp.bytes_sent))
    assert counted == (3, 8)


def test_a_socket_of_both_families_answers_ipv4(hear):
    heard = hear(InetAddress.any(0, ipv6=True))
    heard.udp.message_callback = lambda udp, data, sender, when: udp.send_to(data.upper(), sender)
    with peer(InetAddress.loopback(heard.udp.address.port)) as old_fashioned:
        old_fashioned.send(b"hello")
        assert old_fashioned.recv(100) == b"HELLO"


def test_two_of_ours_talk(hear):
    one, other = hear(InetAddress.loopback(0)), hear(InetAddress.loopback(0))
    assert one.udp.send_to(b"hello", other.udp.address)
    eventually(lambda: other.datagrams == [(b"hello", one.udp.address)])


def test_without_an_address_the_kernel_chooses_a_port_that_stays(hear):
    heard = hear()
    before = heard.udp.address
    assert before.port > 0
    target = hear(InetAddress.loopback(0))
    heard.udp.send_to(b"x", target.udp.address)
    eventually(lambda: target.datagrams)
    assert target.datagrams[0][1].port == before.port == heard.udp.address.port


def test_the_largest_datagram_arrives_whole(hear):
    heard = hear(InetAddress.loopback(0))
    largest = bytes(65507)
    with peer(heard.udp.address) as sender:
        sender.send(largest)
        eventually(lambda: heard.datagrams)
    assert heard.datagrams[0][0] == largest
    with pytest.raises(ValueError, match="family"):
        heard.udp.send_to(b"x", InetAddress.loopback(1, ipv6=True))
    assert call_in_loop(heard.udp.loop, heard.udp.send_to, bytes(65508), heard.udp.address) is False
    eventually(lambda: heard.errors)
    assert heard.errors[0].errno == errno.EMSGSIZE


def test_a_datagram_that_is_too_long_is_dropped_and_counted(hear):
    heard = hear(InetAddress.loopback(0), max_datagram_bytes=10)
    with peer(heard.udp.address) as sender:
        for size in (11, 10, 60_000, 3):
            sender.send(bytes(size))
        eventually(lambda: len(heard.datagrams) == 2)
    assert [len(data) for data, _ in heard.datagrams] == [10, 3]
    assert call_in_loop(heard.udp.loop, lambda: heard.udp.truncated) == 2


def test_any_thread_may_send_and_each_ones_datagrams_stay_in_order(hear):
    one, other = hear(), hear(InetAddress.loopback(0))
    call_in_loop(other.udp.loop, other.udp.set_option, socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    def send(name: int) -> None:
        for i in range(50):
            data = bytearray(b"%d %d" % (name, i))
            assert one.udp.send_to(data, other.udp.address)
            data[:] = b"changed afterwards"

    threads = [threading.Thread(target=send, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    eventually(lambda: len(other.datagrams) == 200)
    said = [tuple(map(int, data.split())) for data, _ in other.datagrams]
    for name in range(4):
        assert [i for who, i in said if who == name] == list(range(50))


def test_a_connected_socket_hears_its_peer_alone(hear):
    heard = hear(InetAddress.loopback(0))
    with peer(heard.udp.address) as friend, peer(heard.udp.address) as stranger:
        with pytest.raises(OSError, match="not connected"):
            heard.udp.send(b"to whom?")
        call_in_loop(heard.udp.loop, heard.udp.connect, InetAddress(*friend.getsockname()))
        stranger.send(b"psst")
        friend.send(b"hello")
        eventually(lambda: heard.datagrams)
        assert heard.udp.send(b"answer")
        assert friend.recv(100) == b"answer"
    assert [data for data, _ in heard.datagrams] == [b"hello"]


def test_nobody_there_is_an_error_that_ends_nothing(hear):
    heard = hear()
    address = nobody(socket.SOCK_DGRAM)
    heard.udp.connect(address)
    heard.udp.send(b"is anybody there?")
    eventually(lambda: heard.errors)
    assert heard.errors[0].errno == errno.ECONNREFUSED
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as late:
        late.bind(address.sockaddr)
        late.settimeout(PATIENCE_S)
        heard.udp.send(b"and now?")
        assert late.recv(100) == b"and now?"


def test_a_unix_peer_that_has_gone_is_an_error_and_its_successor_is_connected_to_anew(hear, tmp_path: Path):
    target = UnixAddress(tmp_path / "target")
    heard = hear(family=socket.AF_UNIX)
    for word in (b"first", b"second"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(target.path)
            receiver.settimeout(PATIENCE_S)
            call_in_loop(heard.udp.loop, heard.udp.connect, target)
            assert heard.udp.send(word)
            assert receiver.recv(100) == word
        assert call_in_loop(heard.udp.loop, heard.udp.send, b"to nobody") is False
        eventually(lambda: heard.errors)
        assert heard.errors.pop().errno == errno.ECONNREFUSED
        Path(target.path).unlink()


def test_errors_with_details_reach_an_unconnected_socket_and_the_loop_sleeps_again(hear):
    heard = hear()
    loop = heard.udp.loop
    call_in_loop(loop, heard.udp.set_option, socket.IPPROTO_IP, IP_RECVERR, 1)
    address = nobody(socket.SOCK_DGRAM)
    for count in (1, 2, 3):
        heard.udp.send_to(b"is anybody there?", address)
        eventually(lambda count=count: len(heard.errors) == count)
    assert {error.errno for error in heard.errors} == {errno.ECONNREFUSED}
    before = call_in_loop(loop, lambda: loop.event_count)
    after: list[int] = []
    loop.run_after(0.05, lambda: after.append(loop.event_count))
    eventually(lambda: after)
    assert after[0] - before < 50  # thousands, if the event stayed up


def test_a_connect_that_fails_leaves_the_former_peer(hear):
    heard = hear()
    nowhere = InetAddress("255.255.255.255", 1)  # broadcast, which is not allowed
    with peer(InetAddress(heard.udp.address.ip, heard.udp.address.port)) as friend:
        address = InetAddress("127.0.0.1", friend.getsockname()[1])
        with pytest.raises(OSError, match="cannot connect to 255"):
            call_in_loop(heard.udp.loop, heard.udp.connect, nowhere)
        assert heard.udp.peer_address is None
        call_in_loop(heard.udp.loop, heard.udp.connect, address)
        with pytest.raises(OSError, match="cannot connect to 255"):
            call_in_loop(heard.udp.loop, heard.udp.connect, nowhere)
        heard.udp.connect(nowhere)  # from this thread: the error callback is told
        eventually(lambda: heard.errors)
        assert heard.udp.peer_address == address
        assert heard.udp.send(b"still you")
        assert friend.recv(100) == b"still you"


def test_what_waits_for_a_former_peer_never_reaches_the_next_one(hear, tmp_path: Path):
    former, following = UnixAddress(tmp_path / "former"), UnixAddress(tmp_path / "following")
    heard = hear(family=socket.AF_UNIX)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
    ):
        one.bind(former.path)
        other.bind(following.path)
        other.settimeout(PATIENCE_S)

        def send_and_turn_away() -> tuple[int, int]:
            heard.udp.connect(former)
            while heard.udp.queued_bytes == 0:
                heard.udp.send(b"for the former")
            heard.udp.connect(following)
            heard.udp.send(b"for the following")
            return heard.udp.dropped, heard.udp.queued_bytes

        assert call_in_loop(heard.udp.loop, send_and_turn_away) == (1, 0)
        assert other.recv(100) == b"for the following"


def test_what_the_kernel_does_not_take_waits_and_then_leaves_in_order(hear, tmp_path: Path):
    target = UnixAddress(tmp_path / "target")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(target.sockaddr)
        receiver.settimeout(PATIENCE_S)
        heard = hear(family=socket.AF_UNIX)
        call_in_loop(heard.udp.loop, heard.udp.connect, target)
        count = 0
        while call_in_loop(heard.udp.loop, lambda: heard.udp.queued_bytes) < 500:
            assert heard.udp.send(b"%d" % count)
            count += 1
        assert [int(receiver.recv(100)) for _ in range(count)] == list(range(count))
        eventually(lambda: call_in_loop(heard.udp.loop, lambda: heard.udp.queued_bytes) == 0)


def test_a_queue_that_is_full_drops_and_counts(hear, tmp_path: Path):
    target = UnixAddress(tmp_path / "target")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(target.sockaddr)
        heard = hear(family=socket.AF_UNIX, max_queued_bytes=1000)
        call_in_loop(heard.udp.loop, heard.udp.connect, target)

        def fill() -> int:
            return sum([heard.udp.send(bytes(36)) for _ in range(2000)])

        taken = call_in_loop(heard.udp.loop, fill)
        assert taken < 2000
        assert call_in_loop(heard.udp.loop, lambda: heard.udp.dropped) == 2000 - taken
        assert call_in_loop(heard.udp.loop, lambda: heard.udp.queued_bytes) <= 1000


def test_a_flood_does_not_shut_out_other_events(hear):
    heard = hear(InetAddress.loopback(0))
    loop = heard.udp.loop
    turns: list[int] = []
    heard.udp.message_callback = lambda udp, data, sender, when: turns.append(loop.iteration)
    call_in_loop(loop, heard.udp.set_option, socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go.wait(PATIENCE_S)

    loop.queue_in_loop(hold)
    assert held.wait(PATIENCE_S)
    with peer(heard.udp.address) as sender:
        for _ in range(100):
            sender.send(b"x")
    go.set()
    eventually(lambda: len(turns) == 100)
    assert max(turns.count(turn) for turn in turns) <= 32


@pytest.mark.provokes_errors("did not like it")
def test_a_callback_that_raises_costs_its_datagram_alone(hear, caplog):
    heard = hear(InetAddress.loopback(0))

    def picky(udp: UdpSocket, data: bytes, sender: Any, when: object) -> None:
        if data == b"bad":
            raise ValueError("did not like it")
        heard.datagrams.append((data, sender))

    heard.udp.message_callback = picky
    with peer(heard.udp.address) as sender:
        for data in (b"good", b"bad", b"better"):
            sender.send(data)
        eventually(lambda: len(heard.datagrams) == 2)
    assert [data for data, _ in heard.datagrams] == [b"good", b"better"]
    assert "did not like it" in caplog.text


def test_close_in_a_callback_is_the_end(hear):
    heard = hear(InetAddress.loopback(0))
    told: list[bytes] = []

    def close(udp: UdpSocket, data: bytes, sender: Any, when: object) -> None:
        told.append(data)
        udp.close()

    heard.udp.message_callback = close
    with peer(heard.udp.address) as sender:
        call_in_loop(heard.udp.loop, lambda: [sender.send(b"first"), sender.send(b"second")])
        eventually(lambda: heard.udp.is_closed)
        call_in_loop(heard.udp.loop, lambda: None)
    assert told == [b"first"]
    assert heard.udp.send_to(b"x", InetAddress.loopback(9)) is False
    with pytest.raises(RuntimeError, match="closed"):
        heard.udp.start()


def test_close_from_any_thread_while_datagrams_come(hear):
    heard = hear(InetAddress.loopback(0))
    with peer(heard.udp.address) as sender:
        for _ in range(100):
            try:
                sender.send(b"x")
            except ConnectionRefusedError:
                break
            if len(heard.datagrams) > 3:
                heard.udp.close()
        heard.udp.close()
        heard.udp.close()
    eventually(lambda: heard.udp.fileno() == -1)


def test_closing_the_loop_closes_it():
    loop = EventLoop()
    started, forgotten = UdpSocket(loop, InetAddress.loopback(0)), UdpSocket(loop, InetAddress.loopback(0))
    started.start()
    loop.close()
    assert started.is_closed
    assert forgotten.is_closed
    assert started.fileno() == forgotten.fileno() == -1


def test_one_that_is_never_started_needs_no_close(loop):
    def hooks() -> int:
        gc.collect()
        loop.queue_in_loop(loop.quit)
        loop.run()
        return sum("UdpSocket" in getattr(o, "__qualname__", "") for o in gc.get_objects() if callable(o))

    UdpSocket(loop, InetAddress.loopback(0))
    before = hooks()
    for _ in range(10):
        UdpSocket(loop, InetAddress.loopback(0))
    assert hooks() == before


def test_one_that_is_never_started_lives_until_what_waits_has_left(loop, tmp_path: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "target"))
        receiver.setblocking(False)
        udp = UdpSocket(loop, family=socket.AF_UNIX)
        udp.connect(UnixAddress(tmp_path / "target"))
        sent = 0
        while udp.queued_bytes == 0:
            assert udp.send(b"x")
            sent += 1
        lives = weakref.ref(udp)
        del udp
        gc.collect()
        received = 0

        def receive() -> None:
            nonlocal received
            try:
                received += len(receiver.recv(100))
            except BlockingIOError:
                gc.collect()
            if received == sent and lives() is None:
                loop.quit()

        loop.run_every(0.001, receive)
        loop.run_after(PATIENCE_S, loop.quit)
        loop.run()
        assert received == sent
        assert lives() is None


def test_a_started_one_lives_without_a_reference(loop_thread):
    datagrams: list[bytes] = []

    def make() -> Any:
        udp = UdpSocket(loop_thread, InetAddress.loopback(0))

        def on_message(udp: UdpSocket, data: bytes, sender: Any, when: object) -> None:
            datagrams.append(data)
            udp.close()

        udp.message_callback = on_message
        udp.start()
        return udp.address

    address = call_in_loop(loop_thread, make)
    with peer(address) as sender:
        sender.send(b"still there")
    eventually(lambda: datagrams == [b"still there"])


def test_unix_datagrams_by_path_and_by_abstract_name(hear, tmp_path: Path):
    for number, address in enumerate((UnixAddress(tmp_path / "a"), UnixAddress.abstract(f"pymuduo-{tmp_path.name}"))):
        heard = hear(address)
        heard.udp.message_callback = lambda udp, data, sender, when: udp.send_to(data + b"!", sender)
        with peer(address, bound_to=str(tmp_path / f"peer{number}")) as sender:
            sender.send(b"hello")
            assert sender.recv(100) == b"hello!"
    heard.udp.close()
    eventually(lambda: heard.udp.fileno() == -1)


def test_several_share_a_port(hear):
    one = hear(InetAddress.loopback(0), reuse_port=True)
    other = hear(one.udp.address, reuse_port=True)
    with pytest.raises(OSError, match="cannot bind"):
        hear(one.udp.address)
    for _ in range(64):
        with peer(one.udp.address) as sender:
            sender.send(b"x")
    eventually(lambda: len(one.datagrams) + len(other.datagrams) == 64)
    assert one.datagrams
    assert other.datagrams


def test_multicast_reaches_who_has_joined(hear):
    group = "239.255.77.77"
    heard = hear(InetAddress.any(0))
    call_in_loop(heard.udp.loop, heard.udp.join_group, group, "lo")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        sender.sendto(b"to all", (group, heard.udp.address.port))
        eventually(lambda: [data for data, _ in heard.datagrams] == [b"to all"])
    call_in_loop(heard.udp.loop, heard.udp.leave_group, group, "lo")
    with pytest.raises(ValueError, match="group"):
        call_in_loop(heard.udp.loop, heard.udp.join_group, "ff02::1")


def test_a_socket_bound_by_somebody_else_is_taken_over(hear):
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(("127.0.0.1", 0))
    port = bound.getsockname()[1]
    heard = hear(inherited=Socket(bound.detach()))
    assert heard.udp.address == InetAddress("127.0.0.1", port)
    with peer(heard.udp.address) as sender:
        sender.send(b"x")
        eventually(lambda: heard.datagrams)


def test_of_two_threads_that_connect_at_once_the_last_one_heard_is_the_peer(hear):
    """The loop's own thread is heard at once, another one when the loop gets to it."""
    udp, one, other = (hear(InetAddress.loopback(0)).udp for _ in range(3))
    in_thread = threading.Thread(target=udp.connect, args=(one.address,))

    def connect() -> None:
        in_thread.start()
        in_thread.join()
        udp.connect(other.address)
        assert udp.peer_address == other.address

    call_in_loop(udp.loop, connect)
    call_in_loop(udp.loop, lambda: None)
    assert udp.peer_address == one.address


def test_a_connected_one_that_is_taken_over_knows_its_peer(hear):
    target = hear(InetAddress.loopback(0))
    connected = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    connected.connect(target.udp.address.sockaddr)
    heard = hear(inherited=Socket(connected.detach()))
    assert heard.udp.peer_address == target.udp.address
    assert heard.udp.send(b"hello")
    eventually(lambda: target.datagrams == [(b"hello", heard.udp.address)])


def test_what_is_no_datagram_socket_is_refused(loop):
    stream = Socket(socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach())
    with pytest.raises(ValueError, match="no datagram socket"):
        UdpSocket(loop, inherited=stream)
    stream.close()


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"max_datagram_bytes": 0}, ValueError),
        ({"max_queued_bytes": -1}, ValueError),
        ({"address": ("127.0.0.1", 1)}, TypeError),
    ],
)
def test_wrong_settings_are_refused(loop, settings, error):
    with pytest.raises(error, match="UdpSocket"):
        UdpSocket(loop, **settings)


def test_only_bytes_can_be_sent(hear):
    heard = hear(InetAddress.loopback(0))
    with pytest.raises(TypeError, match="bytes-like"):
        heard.udp.send_to("text", heard.udp.address)
    with pytest.raises(TypeError, match="InetAddress"):
        heard.udp.send_to(b"x", ("127.0.0.1", 1))
