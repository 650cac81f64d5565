"""Protobuf messages to test with, made without ``protoc``: muduo's, and the frames that muduo makes of them."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto


def _message(name: str, *fields: str) -> DescriptorProto:
    described = []
    for number, field in enumerate(fields, 1):
        label, kind, field_name = field.split()
        label_number = FieldDescriptorProto.Label.Value(f"LABEL_{label.upper()}")
        kind_number = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
        described.append(FieldDescriptorProto(name=field_name, number=number, label=label_number, type=kind_number))
    return DescriptorProto(name=name, field=described)


def _load(file: str, package: str, *messages: DescriptorProto) -> list[Any]:
    pool = descriptor_pool.Default()
    described = FileDescriptorProto(name=file, package=package, syntax="proto2", message_type=messages)
    pool.AddSerializedFile(described.SerializeToString())
    found = [pool.FindMessageTypeByName(f"{package}.{message.name}") for message in messages]
    return [message_factory.GetMessageClass(descriptor) for descriptor in found]


# As in muduo's examples/protobuf/codec/query.proto.
Query, Answer, Empty = _load(
    "query.proto",
    "muduo",
    _message("Query", "required int64 id", "required string questioner", "repeated string question"),
    _message(
        "Answer",
        "required int64 id",
        "required string questioner",
        "required string answerer",
        "repeated string solution",
    ),
    _message("Empty", "optional int32 id"),
)

# On the wire the first fields of muduo's RpcMessage; the name does not travel there.
(Rpc,) = _load("pymuduo_tests.proto", "pymuduo_tests", _message("Rpc", "required int32 type", "required fixed64 id"))


# --- frames, made by hand: neither protobuf nor zlib had a part in them ---


def adler32(data: bytes) -> bytes:
    """Return the checksum of RFC 1950, in network byte order."""
    one, other = 1, 0
    for byte in data:
        one = (one + byte) % 65521
        other = (other + one) % 65521
    return (other << 16 | one).to_bytes(4, "big")


def behind_length(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def named_frame(name: bytes, data: bytes) -> bytes:
    """Return the frame of ``ProtobufCodec``."""
    body = behind_length(name + b"\0") + data
    return behind_length(body + adler32(body))


def tagged_frame(tag: bytes, data: bytes) -> bytes:
    """Return the frame of ``ProtobufCodecLite``."""
    return behind_length(tag + data + adler32(tag + data))


QUERY = Query(id=1, questioner="Chen Shuo", question=["Running?"])
QUERY_FRAME = (
    b"\0\0\0\x2b\0\0\0\x0cmuduo.Query\0"  # 43 bytes follow, 12 of them are the name
    b"\x08\x01\x12\x09Chen Shuo\x1a\x08Running?"
    b"\xc9\x37\x0b\x1e"
)
ANSWER = Answer(id=1, questioner="Chen Shuo", answerer="blog.csdn.net/Solstice", solution=["Jump!", "Win!"])
ANSWER_FRAME = (
    b"\0\0\0\x47\0\0\0\x0dmuduo.Answer\0"
    b"\x08\x01\x12\x09Chen Shuo\x1a\x16blog.csdn.net/Solstice\x22\x05Jump!\x22\x04Win!"
    b"\x8d\xea\x14\x24"
)
EMPTY = Empty()
EMPTY_FRAME = b"\0\0\0\x14\0\0\0\x0cmuduo.Empty\0\x1f\x5b\x04\x74"
RPC = Rpc(type=1, id=2)
RPC_FRAME = b"\0\0\0\x13RPC0\x08\x01\x11\x02\0\0\0\0\0\0\0\x0f\xef\x01\x32"  # in muduo's own test of its RPC, too
