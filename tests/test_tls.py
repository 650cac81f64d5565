"""TLS: handshakes that succeed and fail, what arrives, how it ends, and the switch to it on a live connection."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import random
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from certificates import CUT, IGNORE_CUT, NAME, certificate, client_context, server_context
from conftest import (
    PATIENCE_S,
    Received,
    ServerThread,
    call_in_loop,
    eventually,
    imported,
    receive_all,
    receive_exactly,
    reset,
)
from pymuduo import (
    Buffer,
    ConnectionLimits,
    EventLoop,
    InetAddress,
    ProxyProtocol,
    TcpClient,
    TcpConnection,
    TcpServer,
    TlsLayer,
    UnixAddress,
    encode_proxy_header,
    send_file,
    start_tls,
)
from pymuduo.codec import LineCodec

MUCH = random.Random(7).randbytes(3_000_000)


def echo(connection: TcpConnection, buffer: Buffer, when: object) -> None:
    connection.send(buffer)


class Ends:
    """What a server's connections came to: who was up, who failed, and why they ended."""

    def __init__(self) -> None:
        self.up: list[TcpConnection] = []
        self.down: list[Exception | None] = []
        self.failed: list[Exception] = []

    def note(self, connection: TcpConnection) -> None:
        if connection.connected:
            self.up.append(connection)
        else:
            self.down.append(connection.error)

    def note_failure(self, connection: TcpConnection, error: Exception) -> None:
        assert connection.error is error
        self.failed.append(error)

    def settings(self) -> dict[str, Any]:
        return {"connection_callback": self.note, "handshake_failed_callback": self.note_failure}


@pytest.fixture
def ends() -> Ends:
    return Ends()


def wrap(sock: socket.socket, context: ssl.SSLContext | None = None, **more: Any) -> ssl.SSLSocket:
    """Return a blocking TLS client on a connected socket; closing it closes the socket."""
    return (context or client_context()).wrap_socket(
        sock, server_hostname=NAME, suppress_ragged_eofs=False, do_handshake_on_connect=True, **more
    )


def exchange(tls: ssl.SSLSocket, data: bytes, count: int | None = None) -> bytes:
    """Send all of *data* while receiving *count* bytes, as many as were sent unless given; in one thread, as OpenSSL
    wants it."""
    count = len(data) if count is None else count
    left, received = memoryview(data), bytearray()
    tls.setblocking(False)
    try:
        while left or len(received) < count:
            stuck = True
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                left = left[tls.send(left[:65536]) :] if left else left
                stuck = not left
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                chunk = tls.recv(1 << 18)
                assert chunk, f"the stream ended after {len(received)} of {count} bytes"
                received += chunk
                stuck = False
            if stuck and (left or len(received) < count):
                readable, writable, _ = select.select([tls], [tls] if left else [], [], PATIENCE_S)
                assert readable or writable, f"nothing moves after {len(received)} of {count} bytes"
    finally:
        tls.settimeout(PATIENCE_S)
    return bytes(received)


class Puppet:
    """A TLS client whose every byte the test moves by hand."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None = None) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = (context or client_context()).wrap_bio(self.incoming, self.outgoing, server_hostname=NAME)

    def shake(self, said: bytes = b"") -> None:
        """Shake hands, and say something with the last word of that."""
        while True:
            try:
                self.tls.do_handshake()
                self.sock.sendall(self.outgoing.read() + (self.sealed(said) if said else b""))
                return
            except ssl.SSLWantReadError:
                self.sock.sendall(self.outgoing.read())
                self.hear()

    def hear(self) -> None:
        data = self.sock.recv(65536)
        assert data
        self.incoming.write(data)

    def sealed(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.outgoing.read()

    def goodbye(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.outgoing.read()

    def await_goodbye(self) -> None:
        while True:
            try:
                assert self.tls.read(1) == b""
                return
            except ssl.SSLWantReadError:
                self.hear()
            except ssl.SSLZeroReturnError:
                return

    def receive(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count:
            try:
                received += self.tls.read(count - len(received))
            except ssl.SSLWantReadError:
                self.hear()
        return bytes(received)


class Forger:
    """A TLS 1.3 client that seals its records itself, so that it can say what no library would: KeyUpdate, at will.

    ``puppet`` has shaken hands, and goes on hearing what the server says.
    """

    def __init__(self, sock: socket.socket, folder: Path) -> None:
        context = client_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.keylog_filename = str(folder / "secrets")
        self.puppet = Puppet(sock, context)
        self.puppet.shake()
        context.keylog_filename = None  # type: ignore[assignment]  # closes it
        assert self.puppet.tls.cipher() == ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)
        lines = [line.split() for line in (folder / "secrets").read_text().splitlines()]
        self._cipher = imported("cryptography.hazmat.primitives.ciphers.aead").AESGCM  # trustme needs it as well
        self._take_secret(next(bytes.fromhex(line[2]) for line in lines if line[0] == "CLIENT_TRAFFIC_SECRET_0"))

    def sealed(self, data: bytes, kind: int = 23) -> bytes:
        """Return the record of *data*: payload, unless another kind is given."""
        header = struct.pack(">BHH", 23, 0x0303, len(data) + 1 + 16)
        nonce = (self._iv ^ self._count).to_bytes(12, "big")
        self._count += 1
        body: bytes = self._key.encrypt(nonce, data + bytes([kind]), header)
        return header + body

    def key_updates(self, count: int, *, wants_answer: bool) -> bytes:
        """Return the records in which the client changes its keys so many times, 27 bytes each."""
        wire = bytearray()
        for _ in range(count):
            wire += self.sealed(b"\x18\0\0\1" + bytes([wants_answer]), 22)
            self._take_secret(self._derived(b"traffic upd", 48))
        return bytes(wire)

    def _take_secret(self, secret: bytes) -> None:
        self._secret = secret
        self._key = self._cipher(self._derived(b"key", 32))
        self._iv = int.from_bytes(self._derived(b"iv", 12), "big")
        self._count = 0

    def _derived(self, label: bytes, size: int) -> bytes:
        """HKDF-Expand-Label of RFC 8446, for what fits into one hash."""
        info = struct.pack(">HB", size, 6 + len(label)) + b"tls13 " + label + b"\0"
        return hmac.digest(self._secret, info + b"\1", "sha384")[:size]


# --- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_everything_arrives_in_both_directions(serve, version, threads):
    server = serve(threads, ssl_context=server_context(), message_callback=echo)
    context = client_context()
    context.minimum_version = context.maximum_version = version
    with wrap(server.connect(), context) as tls:
        for size in (1, 64, 16383, 16384, 16385, 40_000):
            assert exchange(tls, MUCH[:size]) == MUCH[:size]
        answer = exchange(tls, MUCH)
        assert hashlib.sha256(answer).digest() == hashlib.sha256(MUCH).digest()
        tls.unwrap()


def test_records_may_come_in_pieces_and_many_at_a_time(serve, ends):
    server = serve(ssl_context=server_context(), message_callback=echo, **ends.settings())
    with server.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        puppet = Puppet(sock)
        puppet.shake()
        for byte in puppet.sealed(b"byte by byte"):
            sock.sendall(bytes([byte]))
        assert puppet.receive(12) == b"byte by byte"
        records = b"".join(puppet.sealed(b"%05d" % i) for i in range(3000))
        sock.sendall(records)
        assert puppet.receive(15_000) == b"".join(b"%05d" % i for i in range(3000))


def test_what_is_left_in_the_buffer_stays_before_what_comes_next(serve):
    taken: list[bytes] = []

    def take_by_frames(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        while len(buffer) >= 4 and len(buffer) >= 4 + buffer.peek_int32():
            taken.append(buffer.retrieve_as_bytes(buffer.read_int32()))

    server = serve(ssl_context=server_context(), message_callback=take_by_frames)
    frames = [MUCH[i : i + size] for i, size in enumerate((1, 70_000, 5, 16_384, 200_000, 3))]
    with wrap(server.connect()) as tls:
        for frame in frames:
            data = struct.pack(">i", len(frame)) + frame
            for at in range(0, len(data), 9_000):
                tls.sendall(data[at : at + 9_000])
        eventually(lambda: len(taken) == len(frames))
        assert taken == frames
        tls.unwrap()


def test_what_waits_together_leaves_in_few_records_and_in_order(serve, ends):
    server = serve(ssl_context=server_context(), **ends.settings())
    with server.connect() as sock:
        puppet = Puppet(sock)
        puppet.shake()
        eventually(lambda: ends.up)

        def send_many() -> None:
            for i in range(1000):
                ends.up[0].send(b"%04d" % i)

        call_in_loop(ends.up[0].loop, send_many)
        wire = bytearray()
        while len(wire) < 4000:
            wire += sock.recv(65536)
        assert len(wire) < 4000 + 1000, "more than a few records"  # session tickets included
        puppet.incoming.write(wire)
        assert puppet.receive(4000) == b"".join(b"%04d" % i for i in range(1000))


def test_threads_may_send_at_any_time(serve, ends):
    server = serve(2, ssl_context=server_context(), **ends.settings())
    with wrap(server.connect()) as tls:
        eventually(lambda: ends.up)
        threads = [
            threading.Thread(target=lambda name=name: [ends.up[0].send(b"%c%06d\n" % (name, i)) for i in range(2000)])
            for name in b"abcd"
        ]
        for thread in threads:
            thread.start()
        lines = receive_exactly(tls, 4 * 2000 * 8).splitlines()
        for thread in threads:
            thread.join(PATIENCE_S)
        for name in b"abcd":
            assert [int(line[1:]) for line in lines if line[0] == name] == list(range(2000))


def test_counters_are_of_plain_text(serve, ends):
    server = serve(ssl_context=server_context(), message_callback=echo, **ends.settings())
    with wrap(server.connect()) as tls:
        assert exchange(tls, MUCH[:100_000]) == MUCH[:100_000]
        connection = ends.up[0]
        counted = call_in_loop(connection.loop, lambda: (connection.bytes_received, connection.bytes_sent))
        assert counted == (100_000, 100_000)


# --- what was agreed on ----------------------------------------------------------------------------------------------


def test_the_connection_shows_what_was_agreed_on(serve, ends):
    context = server_context(asks_client=True)
    context.set_alpn_protocols(["chat/2", "chat/1"])
    server = serve(ssl_context=context, message_callback=echo, **ends.settings())
    client = client_context(certificate("alice@example.org"))
    client.set_alpn_protocols(["chat/1", "other"])
    with wrap(server.connect(), client) as tls:
        assert exchange(tls, b"x") == b"x"
        assert tls.selected_alpn_protocol() == "chat/1"
        agreed = ends.up[0].ssl_object
        assert agreed is not None
        assert agreed.version() == "TLSv1.3"
        assert agreed.selected_alpn_protocol() == "chat/1"
        said = agreed.getpeercert()
        assert said is not None
        assert ("email", "alice@example.org") in said["subjectAltName"]
        assert isinstance(ends.up[0].layer, TlsLayer)


def test_the_name_that_the_client_asks_for_chooses_the_certificate(serve):
    contexts = {name: server_context(certificate(name)) for name in ("one.test", "two.test")}

    def choose(tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int | None:
        if name not in contexts:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        tls.context = contexts[name]
        return None

    context = server_context()
    context.sni_callback = choose
    server = serve(ssl_context=context, message_callback=echo)
    for name in contexts:
        with client_context().wrap_socket(server.connect(), server_hostname=name) as tls:
            said = tls.getpeercert()
            assert said is not None
            assert ("DNS", name) in said["subjectAltName"]
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        client_context().wrap_socket(server.connect(), server_hostname="three.test")


@pytest.mark.parametrize("threads", [0, 2])
def test_a_context_that_is_assigned_later_holds_for_the_connections_that_come_then(serve, threads):
    def serial_number(tls: ssl.SSLSocket) -> object:
        said = tls.getpeercert()
        assert said is not None
        return said["serialNumber"]

    server = serve(threads, ssl_context=server_context(), message_callback=echo)
    with wrap(server.connect()) as old:
        renewed = server_context(certificate("two.test", NAME))
        call_in_loop(server.loop, setattr, server.server, "ssl_context", renewed)
        with wrap(server.connect()) as new:
            assert serial_number(new) != serial_number(old)
        assert exchange(old, b"still here") == b"still here"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_resumes_its_session(serve, ends, version):
    server = serve(ssl_context=server_context(), message_callback=echo, **ends.settings())
    context = client_context()
    context.maximum_version = version
    with wrap(server.connect(), context) as tls:
        assert exchange(tls, b"first") == b"first"
        session = tls.session
        tls.unwrap()
    with wrap(server.connect(), context, session=session) as tls:
        assert exchange(tls, b"second") == b"second"
        assert tls.session_reused
        tls.unwrap()
    assert [connection.ssl_object.session_reused for connection in ends.up] == [False, True]


# --- handshakes that fail --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (bytes(range(256)), "SSL"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "HTTP_REQUEST|WRONG_VERSION_NUMBER"),
        (b"\x16\x03\x01\xff\xff" + bytes(300), "SSL"),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "SSL"),
    ],
    ids=["garbage", "http", "a record too long", "an empty hello"],
)
def test_garbage_instead_of_a_hello_ends_that_connection_alone(serve, ends, hello, reason):
    server = serve(ssl_context=server_context(), message_callback=echo, **ends.settings())
    with wrap(server.connect()) as other, server.connect() as sock:
        sock.sendall(hello)
        with pytest.MonkeyPatch.context():
            try:
                said = receive_all(sock)
            except ConnectionResetError:
                said = b""
        assert said == b"" or said[0] == 21  # an alert
        eventually(lambda: ends.failed)
        assert isinstance(ends.failed[0], ssl.SSLError)
        with pytest.raises(ssl.SSLError, match=reason):
            raise ends.failed[0]
        assert exchange(other, b"still here") == b"still here"
    eventually(lambda: server.server.connection_count == 0)
    assert len(ends.up) == 1
    assert len(ends.down) == 1


@pytest.mark.parametrize("hello", [b"", b"\x16\x03", "half of a real one"])
def test_a_handshake_that_stops_in_the_middle_times_out(serve, ends, hello):
    server = serve(ssl_context=server_context(), handshake_timeout_s=0.05, **ends.settings())
    with server.connect() as sock:
        if isinstance(hello, str):
            puppet = Puppet(sock)
            with pytest.raises(ssl.SSLWantReadError):
                puppet.tls.do_handshake()
            hello = puppet.outgoing.read()[:100]
        sock.sendall(hello)
        with contextlib.suppress(ConnectionResetError):  # what came just before it was closed has not been read
            assert sock.recv(100) == b""
        eventually(lambda: ends.failed)
        assert isinstance(ends.failed[0], TimeoutError)
        assert "0.05 s" in str(ends.failed[0])
    assert ends.up == []


def test_the_time_for_a_handshake_does_not_end_what_is_up(serve, ends):
    settings = {"ssl_context": server_context(), "message_callback": echo, **ends.settings()}
    for limit_s in (0.3, 3.0, PATIENCE_S / 2):  # a machine that does other things, too, may take long for a handshake
        server = serve(handshake_timeout_s=limit_s, **settings)
        with contextlib.suppress(OSError), wrap(server.connect()) as tls, server.connect() as silent:
            eventually(lambda: ends.up or ends.failed)
            if ends.up:
                assert silent.recv(1) == b""  # its time is up, and later than the other's
                assert exchange(tls, b"up") == b"up"
                return
        ends.failed.clear()
    pytest.fail("no handshake is done in time")


@pytest.mark.parametrize("how", ["leaves", "resets"])
def test_a_client_that_goes_away_in_the_middle_of_a_handshake(serve, ends, how):
    server = serve(ssl_context=server_context(), **ends.settings())
    with server.connect() as sock:
        puppet = Puppet(sock)
        with pytest.raises(ssl.SSLWantReadError):
            puppet.tls.do_handshake()
        sock.sendall(puppet.outgoing.read())
        puppet.hear()
        if how == "resets":
            reset(sock)
    eventually(lambda: ends.failed)
    assert isinstance(ends.failed[0], ssl.SSLEOFError if how == "leaves" else ConnectionResetError)
    eventually(lambda: server.server.connection_count == 0)
    assert ends.up == []
    assert ends.down == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_without_the_certificate_that_is_asked_for_is_refused(serve, ends, version):
    server = serve(ssl_context=server_context(asks_client=True), **ends.settings())
    for cert in (None, certificate("bob@example.org", issuer="somebody else")):
        context = client_context(cert)
        context.maximum_version = version
        with pytest.raises(ssl.SSLError, match="ALERT"), wrap(server.connect(), context) as tls:
            tls.recv(1)  # with TLS 1.3 the client learns of it when it reads
        eventually(lambda: ends.failed)
        assert isinstance(ends.failed.pop(), ssl.SSLError)
    assert ends.up == []


def test_a_client_that_does_not_trust_the_server_says_so(serve, ends):
    server = serve(ssl_context=server_context(certificate(NAME, issuer="somebody else")), **ends.settings())
    with server.connect() as sock:
        puppet = Puppet(sock)
        with pytest.raises(ssl.SSLCertVerificationError):
            puppet.shake()
        sock.sendall(puppet.outgoing.read())  # closed at once, it might come as a reset
        eventually(lambda: ends.failed)
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        raise ends.failed[0]


def test_a_client_that_is_refused_after_its_handshake_is_not_heard(serve, ends):
    """The load balancer names the client, so limits can refuse it only then; its first message may be there already."""
    heard: list[bytes] = []
    server = serve(
        ssl_context=server_context(),
        proxy_protocol=ProxyProtocol(["127.0.0.1"]),
        limits=ConnectionLimits(max_per_address=1),
        message_callback=lambda connection, buffer, when: heard.append(buffer.retrieve_all_as_bytes()),
        **ends.settings(),
    )
    header = encode_proxy_header(InetAddress("192.0.2.7", 1), InetAddress("192.0.2.8", 2))
    with server.connect() as first, server.connect() as second:
        for sock, said in ((first, b"first"), (second, b"second")):
            sock.sendall(header)
            puppet = Puppet(sock)
            with contextlib.suppress(ConnectionError):
                puppet.shake(said)
            eventually(lambda: ends.up)
        eventually(lambda: ends.failed)
        assert isinstance(ends.failed[0], ConnectionRefusedError)
        eventually(lambda: heard == [b"first"])
        eventually(lambda: server.server.connection_count == 1)
    assert heard == [b"first"]
    assert len(ends.up) == 1


def test_a_clients_context_makes_no_server(loop):
    with pytest.raises(ValueError, match="PROTOCOL_TLS_SERVER"):
        TcpServer(loop, InetAddress.loopback(0), "server", ssl_context=client_context())


# --- how it ends -----------------------------------------------------------------------------------------------------


def test_shutdown_says_close_notify_behind_everything_sent(serve, ends):
    def serve_once(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        buffer.retrieve_all()
        connection.send(MUCH)
        connection.shutdown()

    server = serve(ssl_context=server_context(), message_callback=serve_once, **ends.settings())
    with wrap(server.connect()) as tls:
        tls.sendall(b"?")
        assert receive_all(tls) == MUCH  # a stream cut short would raise here
    eventually(lambda: ends.down)


def test_the_peers_close_notify_is_answered(serve, ends):
    server = serve(ssl_context=server_context(), message_callback=echo, **ends.settings())
    with wrap(server.connect()) as tls:
        assert exchange(tls, b"last words") == b"last words"
        with tls.unwrap() as sock:  # fails if the answer is anything else
            assert sock.recv(1) == b""
    eventually(lambda: ends.down)
    assert ends.down == [None]


def test_a_stream_without_close_notify_counts_as_cut_short(serve, ends):
    received: list[bytes] = []
    server = serve(
        ssl_context=server_context(),
        message_callback=lambda connection, buffer, when: received.append(buffer.retrieve_all_as_bytes()),
        **ends.settings(),
    )
    with wrap(server.connect()) as tls:
        tls.sendall(b"not all of it")
        tls.shutdown(socket.SHUT_WR)  # of TCP alone
        eventually(lambda: ends.down)
    assert b"".join(received) == b"not all of it"
    assert isinstance(ends.down[0], ssl.SSLEOFError)


def test_so_it_does_if_the_context_would_overlook_it(serve, ends):
    """As a context does at first in CPython before 3.11.3 with OpenSSL 3."""
    context = server_context()
    context.options |= IGNORE_CUT
    server = serve(ssl_context=context, **ends.settings())
    with wrap(server.connect()) as tls:
        tls.shutdown(socket.SHUT_WR)  # of TCP alone
        eventually(lambda: ends.down)
    assert isinstance(ends.down[0], ssl.SSLEOFError)


def test_a_reset_is_the_reason_of_the_end(serve, ends):
    server = serve(ssl_context=server_context(), **ends.settings())
    tls = wrap(server.connect())
    eventually(lambda: ends.up)
    reset(tls)
    eventually(lambda: ends.down)
    assert isinstance(ends.down[0], ConnectionResetError)


def test_a_record_that_was_tampered_with_ends_the_connection_behind_the_good_ones(serve, ends):
    received: list[bytes] = []
    server = serve(
        ssl_context=server_context(),
        message_callback=lambda connection, buffer, when: received.append(buffer.retrieve_all_as_bytes()),
        **ends.settings(),
    )
    with server.connect() as sock:
        puppet = Puppet(sock)
        puppet.shake()
        bad = bytearray(puppet.sealed(b"bad"))
        good = puppet.sealed(b"good")
        bad[-1] ^= 1
        sock.sendall(bytes(bad) + good)
        eventually(lambda: ends.down)
    assert received == []
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.record"):
        raise ends.down[0]


def test_a_peer_that_has_said_goodbye_can_still_be_answered(serve, ends):
    def answer(connection: TcpConnection) -> None:
        connection.send(MUCH)
        connection.shutdown()

    server = serve(
        ssl_context=server_context(), message_callback=echo, peer_shutdown_callback=answer, **ends.settings()
    )
    with server.connect() as sock:
        puppet = Puppet(sock)
        puppet.shake()
        sock.sendall(puppet.sealed(b"question") + puppet.goodbye())
        assert puppet.receive(8 + len(MUCH)) == b"question" + MUCH
        puppet.await_goodbye()
    eventually(lambda: ends.down)
    assert ends.down == [None]


@pytest.mark.parametrize("waits", [False, True], ids=["reading", "with records that wait to be read"])
def test_after_our_goodbye_the_peer_may_still_speak(serve, ends, waits):
    received = Received()
    server = serve(
        ssl_context=server_context(),
        message_callback=lambda connection, buffer, when: received.extend(buffer.retrieve_all_as_bytes()),
        **ends.settings(),
    )
    with server.connect() as sock:
        puppet = Puppet(sock)
        puppet.shake()
        eventually(lambda: ends.up)
        connection = ends.up[0]
        if waits:
            call_in_loop(connection.loop, connection.stop_read)
            sock.sendall(puppet.sealed(b"waiting "))
        connection.shutdown()
        puppet.await_goodbye()
        sock.sendall(puppet.sealed(MUCH[:50_000]))
        connection.start_read()
        expected = (b"waiting " if waits else b"") + MUCH[:50_000]
        eventually(lambda: bytes(received) == expected)
    eventually(lambda: ends.down)


def test_force_close_says_nothing(serve, ends):
    server = serve(ssl_context=server_context(), **ends.settings())
    with wrap(server.connect()) as tls:
        eventually(lambda: ends.up)
        ends.up[0].force_close()
        with pytest.raises((CUT, ConnectionResetError)):
            tls.recv(1)
    eventually(lambda: ends.down)


# --- back-pressure ---------------------------------------------------------------------------------------------------


def test_reading_that_stops_in_the_connection_callback_holds_everything_back(serve):
    up: list[TcpConnection] = []
    received = Received()

    def stop(connection: TcpConnection) -> None:
        if connection.connected:
            connection.stop_read()
            up.append(connection)

    server = serve(
        ssl_context=server_context(),
        connection_callback=stop,
        message_callback=lambda connection, buffer, when: received.extend(buffer.retrieve_all_as_bytes()),
    )
    with server.connect() as sock:
        puppet = Puppet(sock)
        puppet.shake(b"at once ")
        sock.sendall(puppet.sealed(b"and more"))
        eventually(lambda: up)
        for _ in range(3):
            call_in_loop(up[0].loop, lambda: None)
        assert bytes(received) == b""
        up[0].start_read()
        eventually(lambda: bytes(received) == b"at once and more")
        sock.sendall(puppet.goodbye())
    eventually(lambda: server.server.connection_count == 0)


@pytest.mark.parametrize("starts_again", [False, True], ids=["stopped", "stopped and started"])
def test_reading_that_is_stopped_during_the_handshake_is_stopped_when_the_connection_is_up(serve, ends, starts_again):
    reading: list[bool] = []

    def look(connection: TcpConnection) -> None:
        if connection.connected:
            reading.append(connection.is_reading)
        ends.note(connection)

    received = Received()
    server = serve(
        1,
        ssl_context=server_context(),
        connection_callback=look,
        message_callback=lambda connection, buffer, when: received.extend(buffer.retrieve_all_as_bytes()),
    )
    with server.connect() as sock:
        connection = eventually(lambda: server.server.connections)[0]
        connection.stop_read()
        if starts_again:
            connection.start_read()
        puppet = Puppet(sock)
        puppet.shake(b"at once")
        eventually(lambda: ends.up)
        assert reading == [starts_again]
        if not starts_again:
            for _ in range(3):
                call_in_loop(connection.loop, lambda: None)
            assert bytes(received) == b""
            connection.start_read()
        eventually(lambda: bytes(received) == b"at once")


def test_what_came_with_the_handshake_waits_for_start_read_also_when_both_ends_have_said_fin(serve, ends):
    """It is in the layer, where the kernel does not count it as unread."""
    received = Received()

    def stop(connection: TcpConnection) -> None:
        if connection.connected:
            connection.stop_read()
        ends.note(connection)

    server = serve(
        ssl_context=server_context(),
        connection_callback=stop,
        message_callback=lambda connection, buffer, when: received.extend(buffer.retrieve_all_as_bytes()),
    )
    with server.connect() as sock:
        puppet = Puppet(sock)
        puppet.shake(b"at once")
        sock.shutdown(socket.SHUT_WR)
        eventually(lambda: ends.up)
        connection = ends.up[0]
        connection.shutdown()
        receive_all(sock)  # our FIN is there
        iterations = call_in_loop(connection.loop, lambda: connection.loop.iteration)
        for _ in range(20):
            call_in_loop(connection.loop, lambda: None)
        assert call_in_loop(connection.loop, lambda: connection.loop.iteration) < iterations + 100, "the loop spins"
        assert ends.down == []
        connection.start_read()
        eventually(lambda: ends.down)
    assert bytes(received) == b"at once"


def test_a_peer_that_does_not_read_is_felt_and_all_arrives_when_it_does(serve, ends):
    marks: list[Any] = []
    server = serve(
        ssl_context=server_context(),
        high_water_mark_callback=lambda connection, size: marks.append(size),
        high_water_mark=1_000_000,
        low_water_mark=200_000,
        low_water_mark_callback=lambda connection: marks.append("low"),
        write_complete_callback=lambda connection: marks.append("done"),
        **ends.settings(),
    )
    many = MUCH * 5
    with wrap(server.connect()) as tls:
        eventually(lambda: ends.up)
        connection = ends.up[0]
        call_in_loop(connection.loop, connection.send, many)
        eventually(lambda: [mark for mark in marks if isinstance(mark, int)])
        size = next(mark for mark in marks if isinstance(mark, int))
        assert 1_000_000 <= size <= len(many) + 100_000
        waiting = call_in_loop(connection.loop, lambda: connection.output_size)
        assert waiting > 1_000_000
        digest = hashlib.sha256(receive_exactly(tls, len(many))).digest()
        assert digest == hashlib.sha256(many).digest()
        eventually(lambda: marks == [size, "low", "done"])  # and nothing for the handshake
        assert call_in_loop(connection.loop, lambda: connection.output_size) == 0


def test_a_peer_that_never_reads_is_cut_off(serve, ends):
    server = serve(ssl_context=server_context(), max_output_bytes=1_000_000, **ends.settings())
    with wrap(server.connect()):
        eventually(lambda: ends.up)
        while ends.up[0].send(MUCH):
            call_in_loop(ends.up[0].loop, lambda: None)
        eventually(lambda: ends.down)
        assert "max_output_bytes" in str(ends.down[0])


def test_what_tls_says_by_itself_counts_for_the_marks_and_the_limit(serve, ends, tmp_path: Path):
    """A peer that never reads asks for new keys, each of which is answered."""
    marks: list[int] = []
    server = serve(
        ssl_context=server_context(),
        high_water_mark_callback=lambda connection, size: marks.append(size),
        message_callback=lambda connection, buffer, when: buffer.retrieve_all(),
        **ends.settings(),
    )
    with server.connect() as sock:
        forger = Forger(sock, tmp_path)
        eventually(lambda: ends.up)
        connection = ends.up[0]

        def fill() -> None:
            with socket.socket(fileno=os.dup(connection.fd)) as ours:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            connection.send(MUCH)  # at once as much as the kernel takes
            connection.high_water_mark = connection.output_size + 20_000
            connection.max_output_bytes = connection.output_size + 50_000

        call_in_loop(connection.loop, fill)
        with contextlib.suppress(ConnectionError):
            for _ in range(40):  # half a megabyte
                if not ends.down:
                    sock.sendall(forger.key_updates(500, wants_answer=True) + forger.sealed(b"x"))
        eventually(lambda: ends.down)
    assert "max_output_bytes" in str(ends.down[0])
    assert marks


def test_a_reset_while_much_waits_leaves_nothing(serve, ends):
    server = serve(ssl_context=server_context(), **ends.settings())
    tls = wrap(server.connect())
    eventually(lambda: ends.up)
    ends.up[0].send(MUCH * 4)
    reset(tls)
    eventually(lambda: ends.down)
    eventually(lambda: server.server.connection_count == 0)


# --- records that bring nothing --------------------------------------------------------------------------------------


def test_a_peer_that_does_nothing_but_change_its_keys_is_cut_off(serve, ends, tmp_path: Path):
    server = serve(ssl_context=server_context(), message_callback=echo, **ends.settings())
    with server.connect() as sock:
        forger = Forger(sock, tmp_path)
        with contextlib.suppress(ConnectionError):
            sock.sendall(forger.key_updates(3000, wants_answer=False))
        eventually(lambda: ends.down)
    with pytest.raises(ssl.SSLError, match="without payload"):
        raise ends.down[0]


def test_a_peer_may_change_its_keys_as_long_as_it_says_something(serve, tmp_path: Path):
    server = serve(ssl_context=server_context(), message_callback=echo)
    with server.connect() as sock:
        forger = Forger(sock, tmp_path)
        for _ in range(3):
            sock.sendall(forger.key_updates(1500, wants_answer=False) + forger.sealed(b"x"))
        assert forger.puppet.receive(3) == b"xxx"


def test_a_burst_of_key_changes_leaves_the_others_their_turns(serve, tmp_path: Path):
    heard: list[int] = []
    server = serve(
        ssl_context=server_context(),
        message_callback=lambda connection, buffer, when: heard.append(connection.loop.iteration),
    )
    is_there = threading.Event()
    with server.connect() as sock:
        forger = Forger(sock, tmp_path)
        burst = forger.key_updates(2200, wants_answer=False) + forger.sealed(b"x")
        begin = call_in_loop(server.loop, lambda: server.loop.iteration)
        server.loop.run_in_loop(is_there.wait, PATIENCE_S)
        sock.sendall(burst)
        is_there.set()
        eventually(lambda: heard)
    assert heard[0] - begin >= 4


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_and_bytes_leave_in_order(serve, tmp_path: Path):
    path = tmp_path / "much"
    path.write_bytes(MUCH)
    ended: list[OSError | None] = []

    def answer(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        buffer.retrieve_all()
        connection.send(b"before ")
        send_file(connection, path, 10, 1_500_000, lambda connection, error: ended.append(error))
        connection.send(b" between ")
        send_file(connection, path, 0, 0, lambda connection, error: ended.append(error))
        send_file(connection, path, 5, 5, lambda connection, error: ended.append(error))
        connection.shutdown()

    server = serve(ssl_context=server_context(), message_callback=answer)
    with wrap(server.connect()) as tls:
        tls.sendall(b"?")
        assert receive_all(tls) == b"before " + MUCH[10:1_500_010] + b" between " + MUCH[5:10]
    eventually(lambda: ended == [None, None, None])


def test_a_file_that_becomes_shorter_ends_the_connection_without_a_goodbye(serve, ends, tmp_path: Path):
    path = tmp_path / "shrinks"
    path.write_bytes(MUCH)
    ended: list[OSError | None] = []

    def answer(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        buffer.retrieve_all()
        send_file(connection, path, 0, None, lambda connection, error: ended.append(error))
        path.write_bytes(MUCH[:100_000])

    server = serve(ssl_context=server_context(), message_callback=answer, **ends.settings())
    with wrap(server.connect()) as tls:
        tls.sendall(b"?")
        assert receive_exactly(tls, 65536) == MUCH[:65536]
        with pytest.raises((CUT, ConnectionResetError)):
            receive_all(tls)
    eventually(lambda: ends.down)
    assert isinstance(ends.down[0], OSError)
    assert "100000" in str(ended[0])


def test_a_connection_that_ends_first_gives_the_file_back(serve, ends, tmp_path: Path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(50_000_000)
    ended: list[OSError | None] = []

    def answer(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        buffer.retrieve_all()
        send_file(connection, path, 0, None, lambda connection, error: ended.append(error))

    server = serve(ssl_context=server_context(), message_callback=answer, **ends.settings())
    tls = wrap(server.connect())
    tls.sendall(b"?")
    receive_exactly(tls, 100_000)
    reset(tls)
    eventually(lambda: ended)
    assert isinstance(ended[0], ConnectionError)


# --- the client ------------------------------------------------------------------------------------------------------


class Called:
    """A TcpClient in a loop's thread, and what it has heard."""

    def __init__(self, loop: EventLoop, target: Any, context: ssl.SSLContext, **more: Any) -> None:
        self.up: list[TcpConnection] = []
        self.down: list[Exception | None] = []
        self.failed: list[Exception] = []
        self.received = Received()
        self.client = call_in_loop(loop, lambda: TcpClient(loop, target, "client", ssl_context=context, **more))
        self.client.connection_callback = self._note
        self.client.message_callback = lambda connection, buffer, when: self.received.extend(
            buffer.retrieve_all_as_bytes()
        )
        self.client.connect_failed_callback = lambda client, error: self.failed.append(error)
        self.client.connect()

    def _note(self, connection: TcpConnection) -> None:
        if connection.connected:
            self.up.append(connection)
        else:
            self.down.append(connection.error)


@pytest.fixture
def call(loop_thread: EventLoop) -> Iterator[Callable[..., Called]]:
    """Return a function that makes clients."""
    made: list[Called] = []

    def make(server: ServerThread, context: ssl.SSLContext, **more: Any) -> Called:
        made.append(Called(loop_thread, server.server.address, context, **{"server_hostname": NAME, **more}))
        return made[-1]

    yield make
    for one in made:
        one.client.close()


def test_a_client_talks(serve, call):
    server = serve(ssl_context=server_context(), message_callback=echo)
    called = call(server, client_context())
    eventually(lambda: called.up)
    called.up[0].send(MUCH)
    eventually(lambda: len(called.received) == len(MUCH))
    assert bytes(called.received) == MUCH
    called.client.disconnect()
    eventually(lambda: called.down)
    assert called.down == [None]


@pytest.mark.parametrize(
    ("cert", "reason"),
    [
        (lambda: certificate(NAME, is_expired=True), "expired"),
        (lambda: certificate("other.test"), "(?i)hostname mismatch"),
        (lambda: certificate(NAME, issuer="somebody else"), "unable to get local issuer"),
    ],
    ids=["expired", "of another name", "of an unknown authority"],
)
def test_a_certificate_that_is_not_right_is_refused(serve, call, ends, cert, reason):
    server = serve(ssl_context=server_context(cert()), **ends.settings())
    called = call(server, client_context())
    eventually(lambda: called.failed)
    with pytest.raises(ssl.SSLCertVerificationError, match=reason):
        raise called.failed[0]
    assert called.up == []
    assert called.down == []
    eventually(lambda: ends.failed)  # it has heard the alert


def test_a_name_is_checked_unless_the_context_says_otherwise(loop):
    with pytest.raises(ValueError, match="server_hostname"):
        TcpClient(loop, UnixAddress("/nowhere"), "client", ssl_context=client_context())
    context = client_context()
    context.check_hostname = False
    TcpClient(loop, UnixAddress("/nowhere"), "client", ssl_context=context)


def test_a_server_that_does_not_speak_tls_is_an_error(serve, call):
    def greet(connection: TcpConnection) -> None:
        if connection.connected:
            connection.send(b"220 plain.test ready\r\n")

    called = call(serve(connection_callback=greet), client_context())
    eventually(lambda: called.failed)
    with pytest.raises(ssl.SSLError, match=r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|PACKET_LENGTH"):
        raise called.failed[0]


def test_a_server_that_says_nothing_times_out(serve, call):
    called = call(serve(), client_context(), handshake_timeout_s=0.05)
    eventually(lambda: called.failed)
    assert isinstance(called.failed[0], TimeoutError)


def test_a_client_that_comes_back_resumes_its_session(serve, call, ends):
    server = serve(ssl_context=server_context(), message_callback=echo, **ends.settings())
    called = call(server, client_context(), retry=True, retry_delay_s=0.001)
    for round_number in (1, 2, 3):
        eventually(lambda number=round_number: len(called.up) == number)
        called.up[-1].send(b"!")
        eventually(lambda number=round_number: len(called.received) == number)  # tickets have come before it
        ends.up[-1].shutdown()
    eventually(lambda: len(called.up) == 4)
    assert [connection.ssl_object.session_reused for connection in called.up] == [False, True, True, True]


def test_a_client_may_be_closed_in_the_middle_of_a_handshake(serve, call):
    silent = serve()
    for how in ("close", "disconnect", "stop"):
        called = call(silent, client_context())
        eventually(lambda: silent.server.connection_count == 1)
        getattr(called.client, how)()
        if how == "stop":
            called.client.close()
        eventually(lambda: silent.server.connection_count == 0)
        assert called.up == []


# --- the switch on a live connection ---------------------------------------------------------------------------------


def switching(context: ssl.SSLContext, after: list[str | None]) -> Callable[[TcpConnection, Buffer, object], None]:
    """Return a message callback that takes lines, and goes over to TLS at the line ``STARTTLS``."""

    def ready(connection: TcpConnection) -> None:
        assert connection.ssl_object is not None
        after.append(connection.ssl_object.version())
        connection.send(b"300 welcome\r\n")

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        while (end := buffer.find(b"\n")) >= 0:
            line = buffer.retrieve_as_bytes(end + 1)
            if line == b"STARTTLS\r\n":
                connection.send(b"220 go ahead\r\n")
                start_tls(connection, context, server_side=True, ready_callback=ready)
                connection.send(b"250 sealed\r\n")
                return
            connection.send(b"plain " + line if connection.ssl_object is None else b"tls " + line)

    return on_message


def test_a_connection_goes_over_to_tls(serve, ends):
    after: list[str | None] = []
    server = serve(message_callback=switching(server_context(), after), **ends.settings())
    with server.connect() as sock:
        sock.sendall(b"one\r\nSTARTTLS\r\n")
        assert receive_exactly(sock, len(b"plain one\r\n220 go ahead\r\n")) == b"plain one\r\n220 go ahead\r\n"
        with wrap(sock) as tls:
            assert receive_exactly(tls, 25) == b"250 sealed\r\n300 welcome\r\n"
            tls.sendall(b"two\r\n")
            assert receive_exactly(tls, 9) == b"tls two\r\n"
            tls.unwrap().close()
    eventually(lambda: ends.down)
    assert after == ["TLSv1.3"]
    assert (len(ends.up), ends.down) == (1, [None])


def test_the_first_bytes_of_tls_may_come_with_the_word(serve):
    server = serve(message_callback=switching(server_context(), []))
    with server.connect() as sock:
        puppet = Puppet(sock)
        with pytest.raises(ssl.SSLWantReadError):
            puppet.tls.do_handshake()
        sock.sendall(b"STARTTLS\r\n" + puppet.outgoing.read())
        assert receive_exactly(sock, 14) == b"220 go ahead\r\n"
        puppet.shake()
        assert puppet.receive(12) == b"250 sealed\r\n"


def test_commands_behind_the_word_are_not_obeyed(serve, ends):
    server = serve(message_callback=switching(server_context(), []), **ends.settings())
    with server.connect() as sock:
        sock.sendall(b"STARTTLS\r\nDELETE everything\r\n")
        said = receive_all(sock)
        assert said.startswith(b"220 go ahead\r\n")
        assert b"DELETE" not in said
    eventually(lambda: ends.down)
    assert isinstance(ends.down[0], ssl.SSLError)


def test_commands_behind_the_word_are_not_obeyed_by_a_codec_either(serve, ends):
    lines: list[bytes] = []

    def on_line(connection: TcpConnection, line: bytes, when: object) -> None:
        lines.append(line)
        if line == b"STARTTLS":
            start_tls(connection, server_context(), server_side=True)

    server = serve(message_callback=LineCodec(on_line, delimiter=b"\r\n").on_message, **ends.settings())
    with server.connect() as sock:
        sock.sendall(b"HELLO\r\nSTARTTLS\r\nDELETE everything\r\nQUIT\r\n")
        receive_all(sock)
    eventually(lambda: ends.down)
    assert lines == [b"HELLO", b"STARTTLS"]
    assert "2 messages in plain text" in str(ends.down[0])


class LateSwitch:
    """Takes lines by a codec, stops reading at ``STARTTLS``, and goes over to TLS later, when it reads on."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.codec = LineCodec(self.on_line, delimiter=b"\r\n")

    def on_line(self, connection: TcpConnection, line: bytes, when: object) -> None:
        self.lines.append(line)
        if line == b"STARTTLS":
            connection.stop_read()
            connection.loop.queue_in_loop(self.switch, connection)
        else:
            self.codec.send(connection, line)

    def switch(self, connection: TcpConnection) -> None:
        start_tls(connection, server_context(), server_side=True)
        connection.start_read()


def test_commands_that_wait_behind_the_word_are_not_obeyed_either(serve, ends):
    switch = LateSwitch()
    server = serve(message_callback=switch.codec.on_message, **ends.settings())
    with server.connect() as sock:
        sock.sendall(b"HELLO\r\nSTARTTLS\r\nDELETE everything\r\nQUIT\r\n")
        receive_all(sock)
    eventually(lambda: ends.down)
    assert switch.lines == [b"HELLO", b"STARTTLS"]
    assert "2 messages in plain text" in str(ends.down[0])


def test_the_first_bytes_of_tls_may_wait_behind_the_word(serve):
    switch = LateSwitch()
    server = serve(message_callback=switch.codec.on_message)
    with server.connect() as sock:
        puppet = Puppet(sock)
        with pytest.raises(ssl.SSLWantReadError):
            puppet.tls.do_handshake()
        sock.sendall(b"STARTTLS\r\n" + puppet.outgoing.read())
        puppet.shake(b"one\r\n")
        assert puppet.receive(5) == b"one\r\n"
    assert switch.lines == [b"STARTTLS", b"one"]


def test_messages_that_wait_come_before_what_tls_holds(serve):
    lines: list[bytes] = []

    def on_line(connection: TcpConnection, line: bytes, when: object) -> None:
        lines.append(line)
        codec.send(connection, line)
        connection.stop_read()
        connection.loop.queue_in_loop(connection.start_read)

    codec = LineCodec(on_line)
    server = serve(ssl_context=server_context(), message_callback=codec.on_message)
    with server.connect() as sock:
        puppet = Puppet(sock)
        puppet.shake(b"1\n2\n3\n")
        sock.sendall(puppet.sealed(b"4\n5\n") + puppet.sealed(b"6\n"))
        assert puppet.receive(12) == b"1\n2\n3\n4\n5\n6\n"
    assert lines == [b"1", b"2", b"3", b"4", b"5", b"6"]


def test_both_sides_may_be_ours(serve, loop_thread):
    server = serve(message_callback=switching(server_context(), []))
    received = Received()
    ready: list[TcpConnection] = []

    def on_connection(connection: TcpConnection) -> None:
        if connection.connected:
            connection.send(b"STARTTLS\r\n")

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        data = buffer.retrieve_all_as_bytes()
        received.extend(data)
        if bytes(received) == b"220 go ahead\r\n":
            start_tls(
                connection, client_context(), server_side=False, server_hostname=NAME, ready_callback=ready.append
            )

    client = call_in_loop(loop_thread, lambda: TcpClient(loop_thread, server.server.address, "client"))
    client.connection_callback = on_connection
    client.message_callback = on_message
    client.connect()
    eventually(lambda: received.endswith(b"300 welcome\r\n"))
    assert ready == [client.connection]
    ready[0].send(b"x\r\n")
    eventually(lambda: received.endswith(b"tls x\r\n"))
    client.close()


def test_a_switch_that_fails_ends_the_connection_with_the_reason(serve, ends):
    context = server_context()
    server = serve(message_callback=switching(context, []), **ends.settings())
    with server.connect() as sock:
        sock.sendall(b"STARTTLS\r\n")
        receive_exactly(sock, 14)
        sock.sendall(b"no TLS at all, to be sure\r\n")
        receive_all(sock)
    eventually(lambda: ends.down)
    assert isinstance(ends.down[0], ssl.SSLError)


def test_a_switch_takes_what_was_sent_before_in_plain_text(serve, ends):
    server = serve(**ends.settings())
    with server.connect() as sock:
        eventually(lambda: ends.up)
        connection = ends.up[0]

        def switch() -> None:
            connection.send(MUCH)  # more than the kernel takes
            start_tls(connection, server_context(), server_side=True)
            connection.send(b"sealed")

        call_in_loop(connection.loop, switch)
        assert receive_exactly(sock, len(MUCH)) == MUCH
        with wrap(sock) as tls:
            assert receive_exactly(tls, 6) == b"sealed"


def test_a_switch_at_the_wrong_moment_says_so(serve, ends):
    server = serve(ssl_context=server_context(), **ends.settings())
    with wrap(server.connect()):
        eventually(lambda: ends.up)
        connection = ends.up[0]
        with pytest.raises(RuntimeError, match="thread"):
            start_tls(connection, server_context(), server_side=True)
        with pytest.raises(RuntimeError, match="already"):
            call_in_loop(connection.loop, lambda: start_tls(connection, server_context(), server_side=True))
        call_in_loop(connection.loop, connection.force_close)
        eventually(lambda: ends.down)
        with pytest.raises(RuntimeError, match="not up"):
            call_in_loop(connection.loop, lambda: start_tls(connection, server_context(), server_side=True))
