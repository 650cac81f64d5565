"""What is fuzzed: functions that take any bytes, and raise if the library breaks a promise about them.

Errors that the library is meant to raise for bad input are part of its promises, and no failure; everything else that
comes out is one. ``fuzz.py`` looks for such bytes; ``test_corpus.py`` tries those that were once interesting.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import logging
import random
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from google.protobuf.struct_pb2 import ListValue

from certificates import NAME, client_context, server_context
from protobuf_messages import QUERY, adler32, behind_length, named_frame, tagged_frame
from pymuduo import (
    Buffer,
    EventLoop,
    InetAddress,
    Layer,
    ProxyProtocol,
    ProxyProtocolError,
    TcpConnection,
    TlsLayer,
    UnixAddress,
    encode_proxy_header,
    parse_proxy_header,
    start_tls,
)
from pymuduo.codec import (
    Codec,
    CommandCodec,
    FixedLengthCodec,
    LengthHeaderCodec,
    LineCodec,
    NetstringCodec,
    ProtocolError,
    RespCodec,
    VarintCodec,
)
from pymuduo.codec.protobuf import ProtobufCodec, ProtobufCodecLite
from pymuduo.proxy_protocol import ProxyLayer

CORPUS = Path(__file__).parent / "corpus"
_MAX_MESSAGE = 300


class BrokenPromiseError(Exception):
    """The library did what it must not do."""


def check(is_kept: object, what: str) -> None:
    """Raise unless a promise is kept. (Not ``assert``, which an optimising interpreter leaves out.)"""
    if not is_kept:
        raise BrokenPromiseError(what)


class Choices:
    """Bytes as a source of decisions."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def number(self, below: int) -> int:
        """Return a number from 0 to below - 1; 0 when there are no more bytes."""
        wide = 1 if below <= 256 else 2
        taken = self.take(wide)
        return int.from_bytes(taken, "big") % below

    def take(self, count: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken


# --- Buffer ----------------------------------------------------------------------------------------------------------


def fuzz_buffer(data: bytes) -> None:
    """A Buffer behaves as a bytearray does, whatever is done to it in whatever order."""
    choices = Choices(data)
    buffer, model = Buffer(choices.number(40)), bytearray()
    views: list[tuple[memoryview, bytes]] = []
    while choices:
        _one_step(buffer, model, views, choices)
        check(len(buffer) == len(model), "length")
        check(bytes(buffer) == model, "content")
    for view, was in views:
        check(bytes(view) == was, "a view changed")


def _one_step(buffer: Buffer, model: bytearray, views: list[tuple[memoryview, bytes]], choices: Choices) -> None:
    step = choices.number(19)
    piece = choices.take(choices.number(50))
    count = choices.number(60)
    if step == 0:
        buffer.append(piece)
        model += piece
    elif step == 1:
        buffer.prepend(piece)
        model[:0] = piece
    elif step == 2:
        _same_or_refused(count, model, lambda: buffer.retrieve_as_bytes(count))
    elif step == 3:
        _same_or_refused(count, model, lambda: bytes(buffer.peek(count)), takes=False)
    elif step == 4:
        what = (piece or b"\n", b"\n", b"\0\0")[count % 3]  # of what is the same object it remembers where it looked
        check(buffer.find(what) == model.find(what), "find")
    elif step == 5:
        value = int.from_bytes(piece[:4].ljust(4, b"\0"), "big", signed=True)
        buffer.append_int32(value)
        model += value.to_bytes(4, "big", signed=True)
    elif step == 6:
        try:
            check(buffer.read_int16() == int.from_bytes(model[:2], "big", signed=True), "read_int16")
            del model[:2]
        except ValueError:
            check(len(model) < 2, "read_int16 refused")
    elif step == 7:
        buffer.shrink(count)
    elif step == 8:
        buffer.ensure_writable_bytes(count)
        check(buffer.writable_bytes >= count, "room")
    elif step == 9:
        views.append((buffer.peek(), bytes(model)))
    elif step == 10:
        other = Buffer(piece)
        buffer.swap(other)
        check(bytes(other) == model, "swap")
        model[:] = piece
    elif step == 11:
        buffer.give_back()
    elif step == 12 and piece:
        buffer.take_from(bytearray(piece), len(piece))
        model += piece
    elif step == 13:
        check(buffer.retrieve_all_as_bytes() == bytes(model), "retrieve_all_as_bytes")
        model.clear()
    elif step == 14:
        _same_or_refused(count, model, lambda: _nothing(buffer.retrieve(count)) or bytes(model[:count]))
    elif step == 15:
        _find_ends(buffer, model, count)
    elif step == 16:
        other = Buffer(piece)
        buffer.append(other)
        model += piece
        check(bytes(other) == piece, "a Buffer that is appended changes")
    elif step == 17:
        _integer(buffer, model, width=(1, 2, 4, 8)[count % 4], what=count // 4 % 4, value=piece)
    elif step == 18:
        _through_a_socket(buffer, model, piece * (1 + count * 20), is_short_of_scratch=bool(count % 2))


def _nothing(result: object) -> None:
    check(result is None, "a result where there is none")


def _find_ends(buffer: Buffer, model: bytearray, start: int) -> None:
    for find, what in ((buffer.find_crlf, b"\r\n"), (buffer.find_eol, b"\n")):
        try:
            check(find(start) == model.find(what, start), "find an end")
        except ValueError:
            check(start > len(model), "refused to look where there is something")


def _integer(buffer: Buffer, model: bytearray, *, width: int, what: int, value: bytes) -> None:
    number = int.from_bytes(value[:width].ljust(width, b"\xff"), "big", signed=True)
    verb = ("append", "prepend", "peek", "read")[what]
    method = getattr(buffer, f"{verb}_int{8 * width}")
    if what < 2:
        method(number)
        at = len(model) if what == 0 else 0
        model[at:at] = number.to_bytes(width, "big", signed=True)
        return
    try:
        check(method() == int.from_bytes(model[:width], "big", signed=True), verb)
    except ValueError:
        check(len(model) < width, f"{verb} refused")
        return
    if verb == "read":
        del model[:width]


def _through_a_socket(buffer: Buffer, model: bytearray, incoming: bytes, *, is_short_of_scratch: bool) -> None:
    """Write what there is to a socket, and read something else from it, as connections do."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if model:
            count = buffer.write_fd(ours.fileno())
            check(theirs.recv(1 << 20) == model[:count], "write_fd")
            del model[:count]
        if incoming:
            theirs.sendall(incoming)
            scratch = bytearray(20 if is_short_of_scratch else 1 << 16)
            count = buffer.read_fd(ours.fileno(), scratch)
            model += incoming[:count]
            buffer.give_back()


def _same_or_refused(count: int, model: bytearray, call: Callable[[], bytes], takes: bool = True) -> None:
    try:
        result = call()
    except ValueError:
        check(count > len(model), "refused what there is")
        return
    check(result == model[:count], "other bytes")
    if takes:
        del model[:count]


# --- codecs ----------------------------------------------------------------------------------------------------------


def _decode(codec: Codec, pieces: list[bytes], most_held: int) -> tuple[list[Any], bool]:
    """Return the messages in a stream that comes in pieces, and whether it broke the rules."""
    buffer = Buffer(0)
    messages: list[Any] = []
    for piece in pieces:
        buffer.append(piece)
        try:
            while found := codec.decode(buffer):
                messages += found
        except ProtocolError:
            return messages, True
        check(len(buffer) <= most_held + len(piece), "more is held than a message")
    return messages, False


def _cut(stream: bytes) -> list[bytes]:
    cuts = random.Random(stream)
    pieces = []
    at = 0
    while at < len(stream):
        size = cuts.choice((1, 1, 2, 7, 50, 400))
        pieces.append(stream[at : at + size])
        at += size
    return pieces


def _compare_splits(codec: Codec, stream: bytes, most_held: int) -> None:
    whole = _decode(codec, [stream], most_held)
    check(_decode(codec, _cut(stream), most_held) == whole, "other messages when it comes in pieces")
    messages, _ = whole
    check(all(len(message) <= codec.max_bytes for message in messages), "a message too long")
    again = codec.encode_all(messages)
    check(_decode(codec, [again], most_held) == (messages, False), "other messages when sent on")


def fuzz_line_codec(data: bytes) -> None:
    """Lines are the same however the stream is cut; none is too long; sent on they are the same."""
    choices = Choices(data)
    delimiter = (b"\n", b"\r\n", b"\0", b"abab")[choices.number(4)]
    _compare_splits(LineCodec(delimiter=delimiter, max_bytes=_MAX_MESSAGE), data[1:], _MAX_MESSAGE + len(delimiter))


def fuzz_length_header_codec(data: bytes) -> None:
    """The same of messages behind a length."""
    choices = Choices(data)
    width, order = (1, 2, 4, 8)[choices.number(4)], ("big", "little")[choices.number(2)]
    most = min(_MAX_MESSAGE, 255) if width == 1 else _MAX_MESSAGE
    codec = LengthHeaderCodec(header_bytes=width, byte_order=order, max_bytes=most)  # type: ignore[arg-type]
    _compare_splits(codec, data[2:], most + width)


def fuzz_fixed_length_codec(data: bytes) -> None:
    """The same of messages that all have the same length; and no bytes break the rules."""
    codec = FixedLengthCodec(message_bytes=1 + Choices(data).number(70))
    _compare_splits(codec, data[1:], codec.message_bytes - 1)
    check(not _decode(codec, [data], codec.message_bytes)[1], "refused")


def fuzz_netstring_codec(data: bytes) -> None:
    """The same of netstrings; what is taken is what it came as."""
    codec = NetstringCodec(max_bytes=_MAX_MESSAGE)
    _compare_splits(codec, data, _MAX_MESSAGE + 4)
    messages, _ = _decode(codec, [data], _MAX_MESSAGE + 4)
    check(data.startswith(codec.encode_all(messages)), "there are two ways to write a netstring")


def fuzz_varint_codec(data: bytes) -> None:
    """The same of messages behind a varint."""
    _compare_splits(VarintCodec(max_bytes=_MAX_MESSAGE), data, _MAX_MESSAGE + 10)


def _compare_words(codec: Codec, stream: bytes, most_held: int) -> None:
    whole = _decode(codec, [stream], most_held)
    check(_decode(codec, _cut(stream), most_held) == whole, "other messages when it comes in pieces")
    for words in whole[0]:
        try:
            again = codec.encode(words)
        except ValueError:
            continue  # not everything that is understood may be said
        check(_decode(codec, [again], most_held) == ([words], False), "another message when sent on")


def fuzz_command_codec(data: bytes) -> None:
    """Lines of words and the blocks behind them are the same however the stream is cut; none is too long."""
    blocks = ({b"set": 4}, {b"set": -1, b"PUB": 1}, {})[Choices(data).number(3)]
    codec = CommandCodec(blocks=blocks, max_line_bytes=60, max_bytes=_MAX_MESSAGE)
    _compare_words(codec, data[1:], 60 + 2 + _MAX_MESSAGE + 2)
    for words in _decode(codec, [data[1:]], len(data))[0]:
        line = words[:-1] if words and words[0] in blocks else words
        check(len(b" ".join(line)) <= 60, "a line too long")
        check(all(len(word) <= _MAX_MESSAGE for word in words), "a block too long")


def fuzz_resp_codec(data: bytes) -> None:
    """The same of requests of the Redis protocol, which have at least a word."""
    codec = RespCodec(max_bytes=_MAX_MESSAGE, max_words=20)
    _compare_words(codec, data, _MAX_MESSAGE)
    for words in _decode(codec, [data], len(data))[0]:
        check(words, "a request of no words")
        check(sum(map(len, words)) <= _MAX_MESSAGE, "a request too long")


_TYPE_NAMES = (
    b"google.protobuf.ListValue",
    b"google.protobuf.Struct.FieldsEntry",
    b"muduo.Query",
    b"muduo.Empty",
    b"x",
)


def _compare_protobuf(make: Callable[[int], Codec], data: bytes) -> None:
    """Do as ``_compare_splits`` does; no bytes come by a right checksum by chance, so most pieces are given one."""
    choices = Choices(data)
    stream = b""
    while choices:
        kind = choices.number(8)
        piece = choices.take(choices.number(90))
        if kind == 0:
            stream += piece
        elif kind == 1:
            stream += behind_length(piece + adler32(piece))
        elif kind == 2:
            stream += tagged_frame(b"TAG", piece)
        else:
            stream += named_frame(_TYPE_NAMES[kind - 3], piece)
    codec = make(_MAX_MESSAGE)
    whole = _as_bytes(_decode(codec, [stream], _MAX_MESSAGE + 4))
    check(_as_bytes(_decode(codec, _cut(stream), _MAX_MESSAGE + 4)) == whole, "other messages when it comes in pieces")
    messages, _ = _decode(codec, [stream], _MAX_MESSAGE + 4)
    wider = make(100 * _MAX_MESSAGE)  # what protobuf leaves out and puts in makes a message shorter or longer
    again = wider.encode_all(messages)
    check(_as_bytes(_decode(wider, [again], len(again))) == (whole[0], False), "other messages when sent on")


def _as_bytes(decoded: tuple[list[Any], bool]) -> tuple[list[tuple[type, bytes]], bool]:
    """Return messages as values that are equal even where one of their numbers is none."""
    messages, is_broken = decoded
    return [(type(message), message.SerializeToString(deterministic=True)) for message in messages], is_broken


def fuzz_protobuf_codec(data: bytes) -> None:
    """The same of protobuf messages behind their types."""
    _compare_protobuf(lambda limit: ProtobufCodec(max_bytes=limit), data)


def fuzz_protobuf_codec_lite(data: bytes) -> None:
    """The same of protobuf messages behind a tag."""
    _compare_protobuf(lambda limit: ProtobufCodecLite(ListValue, b"TAG", max_bytes=limit), data)


# --- PROXY headers ---------------------------------------------------------------------------------------------------


def fuzz_proxy_header(data: bytes) -> None:
    """A header is understood, incomplete, or refused for good; what is understood survives being written again."""
    outcomes: list[object] = []
    for end in {len(data), len(data) // 2, 16, 1}:
        try:
            outcomes.append(parse_proxy_header(data[:end]))
        except ProxyProtocolError:
            outcomes.append(ProxyProtocolError)
    try:
        found = parse_proxy_header(data)
    except ProxyProtocolError:
        return
    if found is None:
        check(ProxyProtocolError not in outcomes, "refused, and then not")
        return
    header, size = found
    check(0 < size <= len(data), "size")
    check(parse_proxy_header(data[:size]) == found, "what follows matters")
    check(parse_proxy_header(data[: size - 1]) is None, "complete before its end")
    check(all(0 <= kind < 256 and isinstance(value, bytes) for kind, value in header.tlvs), "a value")
    _ = header.alpn, header.authority, header.unique_id, header.netns, header.ssl
    if header.source is not None and header.destination is not None:
        again = encode_proxy_header(header.source, header.destination, version=2)
        parsed = parse_proxy_header(again)
        check(parsed is not None and parsed[0].source == header.source, "another source when written again")


# --- addresses -------------------------------------------------------------------------------------------------------


_only_numbers = functools.partial(socket.getaddrinfo, flags=socket.AI_NUMERICHOST)  # nobody is asked for a name


def fuzz_addresses(data: bytes) -> None:
    """An address is made or refused; made, it says what it is, and what it says makes it again."""
    text = data[2:].decode("utf-8", "surrogateescape")
    port = int.from_bytes(data[:2], "big")
    try:
        address = InetAddress(text, port)
    except (ValueError, OSError):
        pass
    else:
        check(address.port == port, "port")
        scope = address.sockaddr[3] if len(address.sockaddr) == 4 else 0
        again = InetAddress(f"{address.ip}%{scope}" if scope else address.ip, port)
        check(again == address, "another address from its own text")
        check(hash(again) == hash(address), "hash")
        check(InetAddress.parse(address.ip_port).port == port, "parse")
    with mock.patch.object(socket, "getaddrinfo", _only_numbers), contextlib.suppress(ValueError):
        parsed = InetAddress.parse(text)
        again = InetAddress.parse(parsed.ip_port)
        check((again.ip, again.port) == (parsed.ip, parsed.port), "another address when parsed again")
    for make in (UnixAddress, UnixAddress.abstract):
        try:
            unix = make(data)
        except ValueError:
            continue
        check(str(unix).isprintable(), "unprintable")
        check(unix == make(data), "two that are not equal")


# --- what speaks first: TLS, a PROXY header --------------------------------------------------------------------------


class _Entry:
    """A loop, and a server's side of connections whose peer says what the fuzzer wants."""

    def __init__(self) -> None:
        self.loop = EventLoop.current() or EventLoop()
        self.context = server_context()
        self.peer = client_context()
        self.address = InetAddress.loopback(1)
        self.failures: list[BaseException] = []
        self.loop.exception_handler = lambda error, source: self.failures.append(error)
        self.trusted = ProxyProtocol(["127.0.0.0/8"])

    def try_one(self, data: bytes, *, has_header: bool) -> None:
        """Say *data* instead of a hello."""
        layer = TlsLayer(self.context, server_side=True)
        ups: list[TcpConnection] = []
        with self._connection(ProxyLayer(self.trusted, layer) if has_header else layer) as (connection, theirs):
            connection.connection_callback = ups.append
            connection.connect_established()
            half = len(data) // 2
            for piece in (data[:half], data[half:]):
                self._say(theirs, piece)
        check(ups == [], "up without a handshake")

    def try_to_switch(self, data: bytes) -> None:
        """Say *data* where the conversation may go on in TLS, once a line asks for it."""
        heard = bytearray()

        def on_message(connection: TcpConnection, buffer: Buffer, _: object) -> None:
            heard.extend(buffer.peek())
            has_asked = b"STARTTLS\n" in heard
            buffer.retrieve(heard.index(b"STARTTLS\n") + 9 - len(heard) + len(buffer) if has_asked else len(buffer))
            if has_asked:
                connection.message_callback = lambda _connection, _buffer, _time: self.failures.append(
                    BrokenPromiseError("heard without a handshake")
                )
                start_tls(connection, self.context, server_side=True)

        with self._connection(None) as (connection, theirs):
            connection.message_callback = on_message
            connection.connect_established()
            half = len(data) // 2
            for piece in (data[:half], data[half:]):
                self._say(theirs, piece)

    def try_records(self, data: bytes) -> None:
        """Say *data* behind a handshake, in pieces that are encrypted or not."""
        choices, heard, said = Choices(data), bytearray(), bytearray()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        peer = self.peer.wrap_bio(incoming, outgoing, server_hostname=NAME)
        with self._connection(TlsLayer(self.context, server_side=True)) as (connection, theirs):
            connection.message_callback = lambda _, buffer, _time: heard.extend(buffer.retrieve_all_as_bytes())
            connection.connect_established()
            while not connection.connected:
                with contextlib.suppress(ssl.SSLWantReadError):
                    peer.do_handshake()
                self._say(theirs, outgoing.read())
                with contextlib.suppress(BlockingIOError):
                    incoming.write(theirs.recv(1 << 16))
            is_genuine = True
            while choices:
                is_genuine = choices.number(4) > 0 and is_genuine
                piece = choices.take(1 + choices.number(80))
                if is_genuine:
                    peer.write(piece)
                    said += piece
                    piece = outgoing.read()
                self._say(theirs, piece)
        check(heard == said, "what is heard is not what was encrypted")

    @contextlib.contextmanager
    def _connection(self, layer: Layer | None) -> Iterator[tuple[TcpConnection, socket.socket]]:
        """Make a connection and the socket of its peer, which leaves at the end; then the connection has ended."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        connection = TcpConnection(self.loop, "fuzzed", ours.detach(), self.address, self.address)
        if layer is not None:
            connection.set_layer(layer)
        with theirs:
            theirs.setblocking(False)
            yield connection, theirs
        self._turn()
        check(not self.failures, f"an exception: {self.failures}")
        check(connection.disconnected, "still there")
        check(connection.error is None or isinstance(connection.error, (OSError, ValueError)), "its error")

    def _say(self, theirs: socket.socket, piece: bytes) -> None:
        with contextlib.suppress(OSError):  # it has had enough
            theirs.send(piece)
        self._turn()

    def _turn(self) -> None:
        """Let the loop do what it has to do, twice: what is queued meanwhile as well."""
        for _ in range(2):
            self.loop.queue_in_loop(self.loop.quit)
            self.loop.run()

    def close(self) -> None:
        self.loop.close()


_entry: _Entry | None = None


def _entrance() -> _Entry:
    global _entry  # noqa: PLW0603  # made once: a loop and a context cost more than what is fuzzed
    if _entry is None:
        logging.getLogger("pymuduo").setLevel(logging.CRITICAL)
        _entry = _Entry()
    return _entry


def close() -> None:
    """Close what the entry targets share."""
    global _entry  # noqa: PLW0603
    if _entry is not None:
        _entry.close()
        logging.getLogger("pymuduo").setLevel(logging.NOTSET)
        _entry = None


def fuzz_tls_entry(data: bytes) -> None:
    """Any bytes instead of a hello end that connection, in good order, and never bring it up."""
    _entrance().try_one(data, has_header=False)


def fuzz_proxy_entry(data: bytes) -> None:
    """The same before and behind a PROXY header."""
    _entrance().try_one(data, has_header=True)


def fuzz_starttls(data: bytes) -> None:
    """The same on a connection that goes on in TLS; what came before is never taken for what came through it."""
    _entrance().try_to_switch(data)


def fuzz_tls_records(data: bytes) -> None:
    """Behind a handshake all is heard that was encrypted, up to the first byte that was not, and nothing else."""
    _entrance().try_records(data)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "buffer": fuzz_buffer,
    "line_codec": fuzz_line_codec,
    "length_header_codec": fuzz_length_header_codec,
    "fixed_length_codec": fuzz_fixed_length_codec,
    "netstring_codec": fuzz_netstring_codec,
    "varint_codec": fuzz_varint_codec,
    "command_codec": fuzz_command_codec,
    "resp_codec": fuzz_resp_codec,
    "protobuf_codec": fuzz_protobuf_codec,
    "protobuf_codec_lite": fuzz_protobuf_codec_lite,
    "proxy_header": fuzz_proxy_header,
    "addresses": fuzz_addresses,
    "tls_entry": fuzz_tls_entry,
    "proxy_entry": fuzz_proxy_entry,
    "starttls": fuzz_starttls,
    "tls_records": fuzz_tls_records,
}


def seeds(name: str) -> list[bytes]:
    """Return inputs to begin with, from which more interesting ones can grow."""
    one, other = InetAddress("192.0.2.1", 1234), InetAddress("192.0.2.2", 443)
    six = InetAddress("2001:db8::1", 1), InetAddress("2001:db8::2", 2)
    headers = [encode_proxy_header(one, other, version=version) for version in (1, 2)]
    headers += [encode_proxy_header(*six, version=version) for version in (1, 2)]
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        hello.do_handshake()
    client_hello = outgoing.read()
    query = QUERY.SerializeToString()
    return {
        "buffer": [bytes(range(0, 250, 7)), b"\x05" + bytes(range(100)) * 3],
        "line_codec": [b"\0one\ntwo\n", b"\x01a\r\n\r\nb\r\r\n", b"\x03ababab", b"\0" + b"x" * 400],
        "length_header_codec": [b"\2\0\0\0\0\x03abc\0\0\0\0", b"\1\1\x2d\1", b"\3\0\xff\xff\xff\xff"],
        "fixed_length_codec": [b"\2onetwothrfou", b"\0abc", b"\x45" + bytes(200)],
        "netstring_codec": [b"3:one,0:,12:hello world!,", b"3:one3:", b"03:one,", b"301:", b"30:" + bytes(29)],
        "varint_codec": [b"\3one\0\x83\x80\0two", b"\xac\2" + bytes(300), b"\x80" * 10, b"\xff" * 8 + b"\1"],
        "command_codec": [
            b"\0set k 0 60 3\r\none\r\nget k\nset k 0 0 4\r\nfour?\r\n\r\nset k 0 0\r\n",
            b"\1PUB 5 x\r\nhello\r\nset 0\r\n\r\nset 301\r\n",
            b"\2" + b"x " * 40,
        ],
        "resp_codec": [
            b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*0\r\n*-1\r\nPING 'a b' \"\\x00\\n\"\r\n\r\n",
            b"*1\r\n$301\r\n",
            b"*21\r\n",
            b"*1\r\n:1\r\n",
        ],
        "protobuf_codec": [
            b"\x05" + bytes([len(query)]) + query,
            b"\x03\x05\x0a\x03\x1a\x01a\x04\x02\x0a\x00\x06\x02\x08\x05\x07\x00",
            b"\x00\x08\0\0\0\x09abcd\x01\x10\0\0\0\x0cmuduo.Empty\0",
        ],
        "protobuf_codec_lite": [
            b"\x02\x05\x0a\x03\x1a\x01a\x02\x00\x02\x05\x0a\x03\x1a\x01b",
            b"\x02\x09\x0a\x07\x32\x05\x0a\x03\x1a\x01a\x01\x03TAG\x01\x03GAT",
            b"\x00\x04\xff\xff\xff\xff",
        ],
        "proxy_header": [*headers, b"PROXY UNKNOWN\r\n"],
        "addresses": [b"\0\x50127.0.0.1", b"\x01\xbb::1", b"\0\0fe80::1%lo", b"\0\0/run/x.sock"],
        "tls_entry": [client_hello, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05\x01\0\0\x01\0"],
        "proxy_entry": [headers[0] + client_hello, headers[1] + client_hello, headers[1][:20]],
        "starttls": [b"hello\nSTARTTLS\n" + client_hello, b"STARTTLS\n\x16\x03\x01\x00\x05\x01\0\0\x01\0", b"STARTTLS"],
        "tls_records": [
            b"\1\5hello\1\5world",
            b"\1\2one\0\x05\x17\x03\x03\x00\x10x",
            b"\0\5\x14\x03\x03\x00\x01\x01\1\2two",
            b"\1\2one\0\x06\x15\x03\x03\x00\x02\x01\x00",
        ],
    }[name]


def kept(name: str) -> list[bytes]:
    """Return what was found for a target and kept."""
    corpus = CORPUS / f"{name}.txt"
    return list(map(base64.b64decode, corpus.read_text().splitlines())) if corpus.exists() else []


def inputs(name: str) -> list[bytes]:
    """Return a target's seeds, and what was found from them."""
    return seeds(name) + kept(name)
