"""The place of a Unix socket: a file, a Linux abstract name, or nowhere. Immutable: any thread may hold it."""

from __future__ import annotations

import os
import socket
from typing import Any

_MAX_BYTES = 107  # struct sockaddr_un has 108: a file's path ends with a zero, an abstract name begins with one


class UnixAddress:
    """Where a Unix socket is.

    Most often that is a file, made when a server binds. ``UnixAddress.abstract`` is a name that only the kernel
    knows, and that is gone with its socket. A client's socket usually has neither: ``UnixAddress.unnamed``.

    Args:
        path: of the socket's file; at most 107 bytes. A relative one counts from the working directory of the moment
            in which it is used.

    Raises:
        ValueError: *path* is empty, too long, or holds a zero byte.
        TypeError: *path* is neither str, bytes nor ``os.PathLike``.
    """

    __slots__ = ("_raw",)

    _raw: bytes  # as the kernel has it: a path, a zero byte and a name, or nothing

    def __init__(self, path: str | bytes | os.PathLike[str]) -> None:
        raw = os.fsencode(path)
        if not raw:
            raise ValueError("UnixAddress path must not be empty (UnixAddress.unnamed is for a socket without a name)")
        if b"\0" in raw:
            raise ValueError(f"UnixAddress path must not hold a zero byte, got {path!r} (see UnixAddress.abstract)")
        if len(raw) > _MAX_BYTES:
            raise ValueError(f"UnixAddress path must have at most {_MAX_BYTES} bytes, got {len(raw)}: {path!r}")
        self._raw = raw

    @staticmethod
    def abstract(name: str | bytes) -> UnixAddress:
        """Return the address of an abstract name (without the zero byte that the kernel puts before it).

        No file, no permissions: every process of the same network namespace may connect, or take a free name.

        Raises:
            ValueError: *name* is empty or has more than 107 bytes.
        """
        raw = os.fsencode(name)
        if not 0 < len(raw) <= _MAX_BYTES:
            raise ValueError(f"UnixAddress: an abstract name has 1 to {_MAX_BYTES} bytes, got {len(raw)}: {name!r}")
        return from_kernel(b"\0" + raw)

    @staticmethod
    def unnamed() -> UnixAddress:
        """Return the address of a socket that was never bound, as a client's most often is."""
        return _UNNAMED

    @property
    def path(self) -> str:
        """The file's path; empty for an abstract name, and for a socket without a name."""
        return "" if self.is_abstract else os.fsdecode(self._raw)

    @property
    def name(self) -> bytes:
        """The abstract name, without its leading zero byte; empty if it is none."""
        return self._raw[1:] if self.is_abstract else b""

    @property
    def is_abstract(self) -> bool:
        """Whether it is an abstract name."""
        return self._raw.startswith(b"\0")

    @property
    def is_unnamed(self) -> bool:
        """Whether the socket is nowhere: nobody can connect to it."""
        return not self._raw

    @property
    def is_any(self) -> bool:
        """False: there is no Unix address that stands for all of them (``InetAddress.is_any``)."""
        return False

    @property
    def ip(self) -> str:
        """Empty: it has none; ``ip`` and ``port`` are there so that what looks at peers need not ask their kind."""
        return ""

    @property
    def port(self) -> int:
        """0: it has none."""
        return 0

    @property
    def family(self) -> int:
        """``socket.AF_UNIX``."""
        return socket.AF_UNIX

    @property
    def sockaddr(self) -> Any:
        """Return what the ``socket`` module takes for this address: a path, or bytes that begin with a zero."""
        return self._raw if self.is_abstract else os.fsdecode(self._raw)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnixAddress) and self._raw == other._raw

    def __hash__(self) -> int:
        return hash(self._raw)

    def __str__(self) -> str:
        """``unix:/run/x.sock``, ``unix:@name`` or ``unix:``; what can't be printed is escaped."""
        return "unix:" + ("@" if self.is_abstract else "") + _printable(self._raw[self.is_abstract :])

    def __repr__(self) -> str:
        if self.is_unnamed:
            return "UnixAddress.unnamed()"
        return f"UnixAddress.abstract({self.name!r})" if self.is_abstract else f"UnixAddress({self.path!r})"


def from_kernel(raw: bytes) -> UnixAddress:
    """Return the address of what the kernel has in ``sun_path``: nothing is left to check."""
    if not raw:
        return _UNNAMED
    made = UnixAddress.__new__(UnixAddress)
    made._raw = raw
    return made


def _printable(raw: bytes) -> str:
    # A client chooses its own name; it must not be able to write lines of its own into a log.
    text = raw.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _make_unnamed() -> UnixAddress:
    made = UnixAddress.__new__(UnixAddress)
    made._raw = b""
    return made


_UNNAMED = _make_unnamed()
