"""Takes over sockets that somebody else has bound: systemd's socket activation, or a parent process of one's own.

systemd says in ``LISTEN_FDS`` how many sockets there are, from descriptor 3 on, and in ``LISTEN_PID`` for which
process. A parent that starts a child can't know its process id beforehand, so ``handover_environment`` writes a
variable of its own, ``PYMUDUO_LISTEN_FDS``, that names each descriptor together with the number of the socket it is:
``7:48213``. Only a process in which descriptor 7 really is that socket takes it.

Once, at the start of a program, before it has threads: the environment is changed.
"""

from __future__ import annotations

import logging
import os
import socket as _socket
import stat
from typing import TYPE_CHECKING

from pymuduo.socket import Socket

if TYPE_CHECKING:
    from collections.abc import Iterable

_log = logging.getLogger("pymuduo.inherited_sockets")

_FIRST_FD = 3
_SYSTEMD = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")
_OURS = ("PYMUDUO_LISTEN_FDS", "PYMUDUO_LISTEN_FDNAMES")
_UNKNOWN = "unknown"  # systemd's word for a descriptor without a name


def inherited_sockets() -> list[tuple[str, Socket]]:
    """Return the sockets that systemd or a parent process has handed to this one, each with its name.

    Stream sockets listen: give one to ``TcpServer(…, listening=…)``. Datagram sockets are bound, for
    ``UdpSocket(…, inherited=…)``. They are made non-blocking and close-on-exec, and are yours to close. The variables
    that told of them are removed from the environment, so that child processes do not take the sockets for theirs;
    calling this again therefore returns nothing. So it does if there is nothing to inherit, or the variables are meant
    for another process.

    The name is that of ``FileDescriptorName=`` in the socket unit, the unit's own name, or ``"unknown"``.

    Raises:
        ValueError: the variables can't be understood, or a descriptor is neither a listening stream socket nor a bound
            datagram socket. (``Accept=yes`` hands over connections; a server needs ``Accept=no``.)
    """
    said = {name: os.environ.pop(name, "") for name in (*_SYSTEMD, *_OURS)}
    if said["PYMUDUO_LISTEN_FDS"]:
        fds = _of_parent(said["PYMUDUO_LISTEN_FDS"])
        names = said["PYMUDUO_LISTEN_FDNAMES"]
    else:
        fds = _of_systemd(said["LISTEN_PID"], said["LISTEN_FDS"])
        names = said["LISTEN_FDNAMES"]
    called = names.split(":") if names else [_UNKNOWN] * len(fds)
    if fds and len(called) != len(fds):
        raise ValueError(f"inherited sockets: {len(fds)} descriptors with {len(called)} names, {names!r}")
    both = list(zip(fds, called, strict=False))
    for fd, name in both:
        _log.debug("inherited as descriptor %d: %s", fd, _check(fd, name))
    for fd in fds:
        os.set_blocking(fd, False)
        os.set_inheritable(fd, False)
    return [(name, Socket(fd)) for fd, name in both]


def handover_environment(sockets: Iterable[Socket | tuple[str, Socket]]) -> tuple[dict[str, str], tuple[int, ...]]:
    """Return what a child process needs to inherit *sockets*: variables for its environment, and ``pass_fds``.

        environment, descriptors = handover_environment([listening])
        subprocess.Popen(command, env={**os.environ, **environment}, pass_fds=descriptors)

    The child gets them from ``inherited_sockets``. They stay open here as well: both processes accept from the same
    queue, and each closes its own.

    Args:
        sockets: each alone or as ``(name, socket)``; names hold no colon. None is needed.

    Raises:
        ValueError: a name holds a colon, or a character that can't be printed.
        OSError: a socket is closed.
    """
    words, names, fds = [], [], []
    for item in sockets:
        name, sock = (_UNKNOWN, item) if isinstance(item, Socket) else item
        if ":" in name or not name.isprintable() or not name:
            raise ValueError(f"the name of an inherited socket must be printable and without a colon, got {name!r}")
        words.append(f"{sock.fd}:{os.fstat(sock.fd).st_ino}")
        names.append(name)
        fds.append(sock.fd)
    return {"PYMUDUO_LISTEN_FDS": ",".join(words), "PYMUDUO_LISTEN_FDNAMES": ":".join(names)}, tuple(fds)


def _of_systemd(process: str, count: str) -> list[int]:
    if not process or not count:
        return []
    try:
        is_ours, number = int(process) == os.getpid(), int(count)
    except ValueError:
        raise ValueError(f"LISTEN_PID and LISTEN_FDS must be numbers, got {process!r} and {count!r}") from None
    if not is_ours:
        return []
    if not 0 <= number < 1 << 20:
        raise ValueError(f"LISTEN_FDS must be the number of descriptors, got {count!r}")
    return list(range(_FIRST_FD, _FIRST_FD + number))


def _of_parent(words: str) -> list[int]:
    fds = []
    for word in words.split(","):
        fd, _, number = word.partition(":")
        if not (fd.isdecimal() and number.isdecimal()):
            raise ValueError(f"PYMUDUO_LISTEN_FDS must be descriptors with their sockets' numbers, got {words!r}")
        if not _is_socket(int(fd), int(number)):
            _log.warning("descriptor %s is not the socket that was handed over: it was for another process", fd)
            return []
        fds.append(int(fd))
    return fds


def _is_socket(fd: int, number: int) -> bool:
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return stat.S_ISSOCK(status.st_mode) and status.st_ino == number


def _check(fd: int, name: str) -> str:
    """Refuse what is neither a listening stream socket nor a bound datagram socket, and say what it is."""
    try:
        sock = _socket.socket(fileno=os.dup(fd))
    except OSError as e:
        raise ValueError(f"inherited descriptor {fd} ({name}) is no socket: {e}") from None
    with sock:
        if sock.type == _socket.SOCK_STREAM and sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN):
            return f"{name}: stream, {sock.getsockname()}"
        if sock.type == _socket.SOCK_DGRAM and _is_bound(sock):
            return f"{name}: datagrams, {sock.getsockname()}"
        what = f"inherited descriptor {fd} ({name})"
        raise ValueError(f"{what} is neither a listening stream socket nor a bound datagram socket: {sock}")


def _is_bound(sock: _socket.socket) -> bool:
    where = sock.getsockname()
    return bool(where[1]) if isinstance(where, tuple) else bool(where)
