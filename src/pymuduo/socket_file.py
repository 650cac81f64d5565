"""The file of a Unix socket: made by binding, taken over from a server that died, removed by who made it.

A socket's file outlives its socket: a server that was killed leaves it behind, and the next one finds the address in
use. Such a file may be removed, a living server's never. The kernel tells which it is: connecting a datagram socket to
it is refused if no socket is bound to that file, and fails with another error if one is, listening or not yet; it is
never connected, so a living server does not notice.

Two servers that find the same dead file must not remove each other's new one; so looking, removing and binding again
happen under a lock on the directory (``flock``), held for that moment only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time

from pymuduo.unix_address import UnixAddress

_LOCK_PATIENCE_S = 2.0
_LOCK_INTERVAL_S = 0.005


class SocketFile:
    """A file that a bound socket has made. Its owner removes it before the socket is closed.

    The file is known by its number, which can't become another file's while the socket is open: if somebody has put
    another one in its place, that one stays.

    Attributes:
        path: absolute, so that a later ``chdir`` does no harm.
    """

    __slots__ = ("_device", "_number", "_process", "path")

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        found = os.lstat(self.path)
        self._device = found.st_dev
        self._number = found.st_ino
        self._process = os.getpid()

    def remove(self) -> bool:
        """Remove the file; False if it is not ours any more, or this is a forked child of the process that made it.

        Call it while the socket is open.
        """
        if os.getpid() != self._process:
            return False
        try:
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) != (self._device, self._number):
                return False
            os.unlink(self.path)
        except OSError:
            return False  # gone already, or the directory is: there is nothing left to do
        return True


def bind(sock: socket.socket, address: UnixAddress, mode: int | None) -> SocketFile | None:
    """Bind a Unix socket, in the place of a dead one if need be; return its file, None for an abstract name.

    Args:
        mode: the file's permissions, whatever the umask says; None: what the umask leaves of ``0o777``.

    Raises:
        OSError: somebody is bound there, or the path is taken by what is no socket, or can't be used.
        ValueError: *mode* for an address without a file.
    """
    if not address.path:
        if mode is not None:
            raise ValueError(f"only a Unix socket's file has permissions, {address} has none: unix_mode={mode:#o}")
        sock.bind(address.sockaddr)
        return None
    if mode is not None:
        # The file inherits this (less the umask), so that it never has more permissions than it shall have.
        os.fchmod(sock.fileno(), mode)
    try:
        sock.bind(address.sockaddr)
    except OSError as e:
        if e.errno != errno.EADDRINUSE or not is_dead(address.path):
            raise
        _take_over(sock, address, e)
    made = SocketFile(address.path)
    if mode is not None and stat.S_IMODE(os.lstat(made.path).st_mode) != mode:
        try:
            os.chmod(made.path, mode)
        except BaseException:
            made.remove()
            raise
    return made


def is_dead(path: str) -> bool:
    """Whether *path* is a socket's file to which no socket of this machine is bound."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:  # EPROTOTYPE: a stream socket is bound. Others (EACCES) tell nothing, and nothing is removed.
        return False
    return False


def _take_over(sock: socket.socket, address: UnixAddress, error: OSError) -> None:
    """Remove a dead socket's file and bind. Raises *error* if others are faster or the directory can't be locked."""
    try:
        directory = os.open(os.path.dirname(address.path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise error from None
    try:
        if not _lock(directory):
            raise error
        if is_dead(address.path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address.path)
        sock.bind(address.sockaddr)
    finally:
        fcntl.flock(directory, fcntl.LOCK_UN)  # a process forked meanwhile has the descriptor, and must not keep it
        os.close(directory)


def _lock(directory: int) -> bool:
    """Wait for the lock, but not for ever: anybody who may read the directory can hold it."""
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno != errno.EWOULDBLOCK or time.monotonic() >= deadline:
                return False
            time.sleep(_LOCK_INTERVAL_S)
        else:
            return True
