"""The multiplexer and the demultiplexer: together before an echo, and each by itself, byte for byte."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import PATIENCE_S, eventually, receive_all, receive_exactly, reset
from programs import EXAMPLES, PAIR_IN_KERNEL, Program, running
from pymuduo import Buffer
from targets import nobody

sys.path.append(str(EXAMPLES / "multiplexer"))

from multiplexer import Numbers
from mux_codec import MAX_ID, Frame, MuxCodec

MUX, DEMUX = "multiplexer/multiplexer.py", "multiplexer/demultiplexer.py"
HEADER = struct.Struct("<BH")


class Chain:
    """echo.py behind a demultiplexer behind a multiplexer."""

    def __init__(self, stack: contextlib.ExitStack, threads: str) -> None:
        self.echo = stack.enter_context(running("echo.py"))
        self.demux = stack.enter_context(
            running(
                DEMUX, "--backend", f"127.0.0.1:{self.echo.port}", "--threads", threads, "--port", str(nobody().port)
            )
        )
        self.mux = stack.enter_context(running(MUX, "--backend", f"127.0.0.1:{self.demux.port}", "--threads", threads))
        self.mux.wait_for_log("link to .* is up")


@pytest.fixture(params=["0", "2"])
def chain(request: pytest.FixtureRequest) -> Iterator[Chain]:
    with contextlib.ExitStack() as stack:
        yield Chain(stack, request.param)


class Conversation(threading.Thread):
    """Sends and receives at the same time, and leaves when everything has come back."""

    def __init__(self, peer: socket.socket, payload: bytes) -> None:
        super().__init__()
        self.peer = peer
        self.payload = payload
        self.received = b""
        self.start()

    def run(self) -> None:
        sender = threading.Thread(target=self.peer.sendall, args=(self.payload,))
        sender.start()
        self.received = receive_exactly(self.peer, len(self.payload))
        sender.join(PATIENCE_S)

    def is_right(self) -> bool:
        self.join(PATIENCE_S)
        return self.received == self.payload


def test_many_clients_share_a_link_and_each_hears_itself(chain: Chain) -> None:
    with contextlib.ExitStack() as stack:
        sizes = [1, 254, 255, 256, 510, 511, 100_000, 1_000_000] + [1 + 37 * i for i in range(60)]
        peers = [stack.enter_context(chain.mux.connect()) for _ in sizes]
        talks = [Conversation(peer, os.urandom(size)) for peer, size in zip(peers, sizes, strict=True)]
        assert all(talk.is_right() for talk in talks)
        # It is one connection.
        assert len(re.findall("link from .* is up", chain.demux.err)) == 1
    eventually(lambda: chain.mux.err.count(" is down, and was ") == len(sizes))
    eventually(lambda: chain.demux.err.count(" is down, and was ") == len(sizes))


def test_a_number_is_given_again_when_both_ends_have_let_go_of_it(chain: Chain) -> None:
    for _ in range(20):
        with chain.mux.connect() as peer:
            assert Conversation(peer, b"hello").is_right()
        eventually(lambda: "is up as" in chain.mux.err)
    with chain.mux.connect() as one, chain.mux.connect() as other:
        assert Conversation(one, b"one").is_right()
        assert Conversation(other, b"other").is_right()
    eventually(lambda: chain.mux.err.count("is up as") == 22)
    numbers = [int(number) for number in re.findall(r"is up as (\d+)", chain.mux.err)]
    assert max(numbers) <= 4  # a newcomer may be faster than the goodbyes of those before it


def test_what_a_client_said_last_arrives_though_it_has_left(chain: Chain) -> None:
    payload = os.urandom(300_000)
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        listener.settimeout(PATIENCE_S)
        demux = stack.enter_context(running(DEMUX, "--backend", f"127.0.0.1:{listener.getsockname()[1]}"))
        mux = stack.enter_context(running(MUX, "--backend", f"127.0.0.1:{demux.port}", "--threads", "1"))
        mux.wait_for_log("link to .* is up")
        for _ in range(3):
            with mux.connect() as peer:
                peer.sendall(payload)
            with listener.accept()[0] as backend:
                backend.settimeout(PATIENCE_S)
                assert receive_all(backend) == payload


def test_what_the_backend_said_last_arrives_though_it_has_left() -> None:
    payload = os.urandom(300_000)
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        listener.settimeout(PATIENCE_S)
        demux = stack.enter_context(running(DEMUX, "--backend", f"127.0.0.1:{listener.getsockname()[1]}"))
        mux = stack.enter_context(running(MUX, "--backend", f"127.0.0.1:{demux.port}", "--threads", "1"))
        mux.wait_for_log("link to .* is up")
        for _ in range(3):
            with mux.connect() as peer:
                with listener.accept()[0] as backend:
                    backend.sendall(payload)
                assert receive_all(peer) == payload


def test_clients_of_a_broken_link_are_closed_and_the_link_is_made_anew(chain: Chain) -> None:
    with chain.mux.connect() as one, chain.mux.connect() as other:
        assert Conversation(one, b"one").is_right()
        assert Conversation(other, b"other").is_right()
        port = chain.demux.port
        chain.demux.process.send_signal(signal.SIGKILL)
        chain.demux.wait()
        assert receive_all(one) == receive_all(other) == b""
    chain.mux.wait_for_log("link to .* is down")
    with chain.mux.connect() as peer:
        assert receive_all(peer) == b""  # nobody is there to talk to
    chain.mux.wait_for_log("is sent away: no link")
    eventually(lambda: chain.echo.err.count(" is down") == 2)
    with running(DEMUX, "--backend", f"127.0.0.1:{chain.echo.port}", "--port", str(port)):
        eventually(lambda: len(re.findall("link to .* is up", chain.mux.err)) == 2)
        with chain.mux.connect() as peer:
            assert Conversation(peer, os.urandom(100_000)).is_right()
        eventually(lambda: re.findall(r"is up as (\d+)", chain.mux.err)[2:] == ["1"])  # a new link has new numbers


def test_backends_of_a_broken_link_are_left(chain: Chain) -> None:
    with chain.mux.connect() as peer:
        assert Conversation(peer, b"hello").is_right()
        chain.mux.process.send_signal(signal.SIGKILL)
        chain.mux.wait()
    chain.demux.wait_for_log("link from .* is down")
    chain.echo.wait_for_log("is down")


def test_a_client_without_a_backend_is_closed() -> None:
    with socket.socket() as taken, contextlib.ExitStack() as stack:
        taken.bind(("127.0.0.1", 0))
        demux = stack.enter_context(running(DEMUX, "--backend", f"127.0.0.1:{taken.getsockname()[1]}"))
        mux = stack.enter_context(running(MUX, "--backend", f"127.0.0.1:{demux.port}"))
        mux.wait_for_log("link to .* is up")
        for _ in range(3):
            with mux.connect() as peer:
                assert receive_all(peer) == b""
        demux.wait_for_log("no backend for")


@pytest.mark.measures_memory
@pytest.mark.timeout(600)
def test_a_client_that_stops_reading_holds_the_others_up_for_a_while_and_no_longer(chain: Chain) -> None:
    before = chain.mux.peak_bytes, chain.demux.peak_bytes
    with chain.mux.connect() as stuck, chain.mux.connect() as other:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        stuck.settimeout(2 * PATIENCE_S)

        def send() -> None:
            with contextlib.suppress(OSError):  # it is cut off
                while True:
                    stuck.send(bytes(65536))

        sender = threading.Thread(target=send)
        sender.start()
        # Or the echo, which stops reading who does not read.
        eventually(lambda: "holds up the link and is cut off" in chain.mux.err + chain.demux.err)
        sender.join(PATIENCE_S)
        assert not sender.is_alive()
        assert Conversation(other, os.urandom(100_000)).is_right()
    assert chain.mux.peak_bytes - before[0] < 64 << 20
    assert chain.demux.peak_bytes - before[1] < 64 << 20


def test_a_client_that_reads_late_loses_nothing(chain: Chain) -> None:
    payload = os.urandom(600_000)
    with chain.mux.connect() as late, chain.mux.connect() as other:
        late.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sender = threading.Thread(target=late.sendall, args=(payload,))
        sender.start()
        assert Conversation(other, os.urandom(600_000)).is_right()  # meanwhile
        sender.join(PATIENCE_S)
        assert receive_exactly(late, len(payload)) == payload


# --- the wire, by hand ---


def frame(number: int, data: bytes) -> bytes:
    return HEADER.pack(len(data), number) + data


def read_frame(link: socket.socket) -> tuple[int, bytes]:
    count, number = HEADER.unpack(receive_exactly(link, HEADER.size))
    return number, receive_exactly(link, count)


def address(peer: socket.socket) -> bytes:
    return b"%b:%d" % (peer.getsockname()[0].encode(), peer.getsockname()[1])


@contextlib.contextmanager
def mux_before_us(*arguments: str) -> Iterator[tuple[Program, socket.socket]]:
    """A multiplexer, and the link's other end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        with running(MUX, "--backend", f"127.0.0.1:{listener.getsockname()[1]}", *arguments) as mux:
            with listener.accept()[0] as link:
                link.settimeout(PATIENCE_S)
                mux.wait_for_log("link to .* is up")
                yield mux, link


@pytest.mark.parametrize("threads", ["0", "2"])
def test_the_multiplexer_speaks_as_muduos(threads: str) -> None:
    with mux_before_us("--threads", threads) as (mux, link):
        with mux.connect() as one:
            assert read_frame(link) == (0, b"CONN 1 FROM %b IS UP\r\n" % address(one))
            one.sendall(b"hello")
            assert receive_exactly(link, 8) == b"\x05\x01\x00hello"
            with mux.connect() as two:
                assert read_frame(link) == (0, b"CONN 2 FROM %b IS UP\r\n" % address(two))
                two.sendall(b"x" * 600)
                received = [read_frame(link)]
                while sum(len(data) for _, data in received) < 600:
                    received.append(read_frame(link))
                assert {number for number, _ in received} == {2}
                # To the one and the other; to nobody, and empty; a command in pieces.
                link.sendall(frame(2, b"two") + frame(1, b"one") + frame(9, b"nobody") + frame(1, b"") + frame(0, b""))
                assert receive_exactly(one, 3) == b"one"
                assert receive_exactly(two, 3) == b"two"
                for byte in frame(1, b"last") + frame(0, b"DISCONNECT 1\r\n"):
                    link.sendall(bytes([byte]))
                assert receive_all(one) == b"last"
                assert read_frame(link) == (0, b"CONN 1 FROM %b IS DOWN\r\n" % address(one))
                gone = address(two)
            assert read_frame(link) == (0, b"CONN 2 FROM %b IS DOWN\r\n" % gone)
            link.sendall(frame(2, b"too late"))
        # Number 1 is free, 2 is not: the link may still bring something for it.
        with mux.connect() as three, mux.connect() as four:
            up = {read_frame(link)[1].split()[1] for _ in range(2)}
            assert up == {b"1", b"3"}
            link.sendall(frame(2, b"too late") + frame(0, b"DISCONNECT 2\r\n") + frame(0, b"HELP\r\n"))
            mux.wait_for_log("not understood")
            with mux.connect() as five:
                assert read_frame(link) == (0, b"CONN 2 FROM %b IS UP\r\n" % address(five))
                link.sendall(frame(2, b"five") + frame(1, b"1") + frame(3, b"3"))
                assert receive_exactly(five, 4) == b"five"
            assert {receive_exactly(three, 1), receive_exactly(four, 1)} == {b"1", b"3"}


def test_a_client_that_is_reset_is_reported_down() -> None:
    with mux_before_us() as (mux, link):
        peer = mux.connect()
        name = address(peer)
        assert read_frame(link) == (0, b"CONN 1 FROM %b IS UP\r\n" % name)
        reset(peer)
        assert read_frame(link) == (0, b"CONN 1 FROM %b IS DOWN\r\n" % name)


@pytest.mark.measures_memory
def test_a_link_that_is_not_read_slows_the_clients_down() -> None:
    with mux_before_us("--threads", "1") as (mux, link), mux.connect() as peer:
        before = mux.peak_bytes
        peer.settimeout(0.5)
        payload = os.urandom(1 << 20)
        limit = 2 * PAIR_IN_KERNEL + (8 << 20)  # of two pairs, and the mux
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < limit:
                sent += peer.send(memoryview(payload)[sent % len(payload) :])
        assert sent < limit
        assert mux.peak_bytes - before < 64 << 20
        # All of it arrives, once the link is read.
        received = 0
        with link.makefile("rb") as frames:
            while received < sent:
                count, number = HEADER.unpack(frames.read(HEADER.size))
                data = frames.read(count)
                if number:
                    at = received % len(payload)
                    assert data == (payload[at : at + count] + payload[:count])[:count]
                    received += count
        assert received == sent


@contextlib.contextmanager
def demux_before_us(*arguments: str) -> Iterator[tuple[Program, socket.socket, socket.socket]]:
    """A demultiplexer, our end of the link, and the backend's listener."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        with running(DEMUX, "--backend", f"127.0.0.1:{listener.getsockname()[1]}", *arguments) as demux:
            with demux.connect() as link:
                yield demux, link, listener


def up(number: int) -> bytes:
    return frame(0, b"CONN %d FROM 192.0.2.1:%d IS UP\r\n" % (number, number))


def down(number: int) -> bytes:
    return frame(0, b"CONN %d FROM 192.0.2.1:%d IS DOWN\r\n" % (number, number))


@pytest.mark.parametrize("threads", ["0", "2"])
def test_the_demultiplexer_speaks_as_muduos(threads: str) -> None:
    with demux_before_us("--threads", threads) as (demux, link, listener):
        link.sendall(up(65535) + frame(65535, b"hello ") + frame(65535, b"world") + frame(7, b"nobody") + down(7))
        with listener.accept()[0] as backend:
            assert receive_exactly(backend, 11) == b"hello world"
            backend.sendall(b"y" * 256)
            assert read_frame(link) == (65535, b"y" * 255)
            assert read_frame(link) == (65535, b"y")
            backend.sendall(b"last")
        assert read_frame(link) == (65535, b"last")
        assert read_frame(link) == (0, b"DISCONNECT 65535\r\n")
        # It has said goodbye; what still comes for the number is for nobody, until there is a new client.
        link.sendall(frame(65535, b"late") + down(65535) + up(65535) + frame(65535, b"new"))
        with listener.accept()[0] as backend:
            assert receive_exactly(backend, 3) == b"new"
            # Now the client is the first to leave.
            link.sendall(frame(65535, b"bye") + down(65535))
            assert read_frame(link) == (0, b"DISCONNECT 65535\r\n")
            assert receive_all(backend) == b"bye"
            backend.sendall(b"for nobody")
        link.sendall(up(1) + frame(1, b"there?"))
        with listener.accept()[0] as backend:
            assert receive_exactly(backend, 6) == b"there?"
            backend.sendall(b"yes")
            assert read_frame(link) == (1, b"yes")
            # A second link has numbers of its own.
            with demux.connect() as second:
                second.sendall(up(1) + frame(1, b"me too"))
                with listener.accept()[0] as other:
                    assert receive_exactly(other, 6) == b"me too"
                    backend.sendall(b"yes")
                    assert read_frame(link) == (1, b"yes")


@pytest.mark.parametrize(
    "nonsense",
    [up(1) + up(1), up(0), frame(0, b"CONN 65536 FROM x IS UP\r\n"), frame(0, b"HELLO\r\n"), frame(0, b"CONN 1\n")],
)
def test_a_link_that_talks_nonsense_is_cut_off(nonsense: bytes) -> None:
    with demux_before_us() as (demux, link, listener):
        link.sendall(nonsense)
        with contextlib.suppress(ConnectionResetError):
            assert receive_all(link) == b""
        demux.wait_for_log("makes no sense; cut off")
        with demux.connect() as second:
            second.sendall(up(5))
            listener.accept()[0].close()
            if nonsense.count(b"UP") == 2:
                listener.accept()[0].close()


def test_early_bytes_for_a_client_that_has_left_still_reach_the_backend() -> None:
    with demux_before_us() as (_, link, listener):
        link.sendall(up(1) + frame(1, b"fire and forget") + down(1))
        assert read_frame(link) == (0, b"DISCONNECT 1\r\n")
        with listener.accept()[0] as backend:
            backend.settimeout(PATIENCE_S)
            assert receive_all(backend) == b"fire and forget"


# --- the pieces ---


@given(
    st.lists(st.tuples(st.integers(1, MAX_ID), st.binary(max_size=700)), max_size=20),
    st.lists(st.integers(1, 300), min_size=1),
)
def test_what_is_encoded_is_decoded_however_it_arrives(said: list[tuple[int, bytes]], sizes: list[int]) -> None:
    codec = MuxCodec()
    wire = codec.encode_all([Frame(*one) for one in said])
    buffer, heard, at = Buffer(), [], 0
    while at < len(wire):
        for size in sizes:
            buffer.append(wire[at : at + size])
            at += size
            heard += codec.decode(buffer)
    assert len(buffer) == 0
    assert all(0 < len(frame.data) <= 255 for frame in heard)
    for number in {number for number, _ in said}:
        assert b"".join(d for n, d in heard if n == number) == b"".join(d for n, d in said if n == number)


@pytest.mark.parametrize("payload", [Frame(-1, b"x"), Frame(65536, b"x"), Frame(0, bytes(256))])
def test_what_the_wire_cannot_carry_is_refused(payload: Frame) -> None:
    with pytest.raises(ValueError):
        MuxCodec().encode(payload)


def test_numbers_run_out_and_the_oldest_without_a_goodbye_is_given_again() -> None:
    numbers = Numbers()
    assert [numbers.take() for _ in range(MAX_ID)] == list(range(1, MAX_ID + 1))
    assert numbers.take() is None
    for number in (7, 5, 9):
        numbers.leave(number)
    assert numbers.give_back(9)
    assert not numbers.give_back(9)
    assert not numbers.give_back(8)
    assert [numbers.take() for _ in range(4)] == [9, 7, 5, None]
