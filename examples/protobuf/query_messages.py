"""The messages of muduo's query example, in package ``muduo``: ``Query``, ``Answer`` and ``Empty``.

A program of yours would import a module ``query_pb2``, which ``protoc`` writes from a file ``query.proto``. Here
protobuf is told the same without that tool, so that the example runs with what pip installs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto


def text_of(field: str | bytes) -> str:
    """Return what a string field holds. Of proto2 nobody checks that it is UTF-8; protobuf hands out bytes if not."""
    return field if isinstance(field, str) else field.decode("utf-8", "replace")


def _message(name: str, *fields: str) -> DescriptorProto:
    """Return the description of a message; its fields, as they stand in a ``.proto`` file, are numbered from 1."""
    found = []
    for number, field in enumerate(fields, 1):
        label, kind, field_name = field.split()
        found.append(
            FieldDescriptorProto(
                name=field_name,
                number=number,
                label=FieldDescriptorProto.Label.Value(f"LABEL_{label.upper()}"),
                type=FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}"),
            )
        )
    return DescriptorProto(name=name, field=found)


_FILE = FileDescriptorProto(
    name="query.proto",
    package="muduo",
    syntax="proto2",
    message_type=[
        _message("Query", "required int64 id", "required string questioner", "repeated string question"),
        _message(
            "Answer",
            "required int64 id",
            "required string questioner",
            "required string answerer",
            "repeated string solution",
        ),
        _message("Empty", "optional int32 id"),
    ],
)

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableSequence

    from google.protobuf.message import Message

    # What a type checker can't see, because it comes to be at run time. For query_pb2 mypy-protobuf writes the like.
    class Query(Message):
        """Questions of somebody."""

        id: int
        questioner: str
        question: MutableSequence[str]

        def __init__(self, *, id: int, questioner: str, question: Iterable[str] = ()) -> None: ...  # noqa: A002

    class Answer(Message):
        """What somebody says to them."""

        id: int
        questioner: str
        answerer: str
        solution: MutableSequence[str]

        def __init__(self, *, id: int, questioner: str, answerer: str, solution: Iterable[str] = ()) -> None: ...  # noqa: A002

    class Empty(Message):
        """Next to nothing."""

        id: int

        def __init__(self, *, id: int = 0) -> None: ...  # noqa: A002

else:
    _pool = descriptor_pool.Default()
    _pool.AddSerializedFile(_FILE.SerializeToString())
    Query, Answer, Empty = (
        message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"muduo.{name}"))
        for name in ("Query", "Answer", "Empty")
    )
