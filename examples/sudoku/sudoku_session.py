r"""The sudoku protocol, and a connection's part in it: requests come in, answers go out, never too many at a time.

A request is ``[id:]<81 digits>\r\n`` with 0 for an empty cell. An answer is ``[id:]<81 digits>\r\n``, or has one of
these words in place of the digits:

==============  =======================================================================
NoSolution      the puzzle has none
TooHard         the solver has given up: see ``sudoku_solver.MAX_STEPS``
ServerTooBusy   ask again later (``server_prod.py``)
BadRequest      this is no request; the connection ends, once all before it are answered
==============  =======================================================================

The id is the client's own: with more than one thread or process at work, answers overtake one another.

What it teaches: not to take on more than you can do. One read may bring thousands of requests. So many of them as the
server has set are in work; the others wait, and as long as one waits, or the peer leaves its answers unread, nothing
more is read, until the peer has to wait as well. A peer who has said that it sends no more (``nc`` does at the end of
its input) still gets all its answers.

All of a session belongs to the thread of its connection's loop, but for ``answer`` and ``is_wanted``: any thread.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from pymuduo import IdleTimeouts, TcpConnection, TcpServer, Timestamp
from pymuduo.codec import LineCodec, ProtocolError
from sudoku_solver import is_puzzle

BAD_REQUEST = b"BadRequest"
TOO_BUSY = b"ServerTooBusy"
DELIMITER = b"\r\n"
MAX_LINE_BYTES = 128  # with 81 digits and a colon, 46 for an id
_MAX_UNREAD_BYTES = 1 << 16
_UNREAD_ENOUGH_BYTES = 1 << 14
_PATIENCE_S = 10.0
_STALL_S = 60.0


class Request(NamedTuple):
    """One puzzle to solve. *prefix* is the id and its colon, or nothing; *received* is by the monotonic clock."""

    prefix: bytes
    puzzle: bytes
    received: float


class Session:
    """One connection's requests: those that wait, and how many are in work."""

    def __init__(self, connection: TcpConnection, service: SudokuService) -> None:
        self.connection = connection
        self._service = service
        self._waiting: deque[bytes] = deque()
        self._received = 0.0
        self._in_work = 0
        self._is_unread = False
        self._is_ending = False

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for answers; from any thread."""
        return not self.connection.disconnected

    def answer(self, request: Request, result: bytes) -> None:
        """Send the answer to a request that was begun, from any thread, and go on to the next one."""
        self.connection.send(request.prefix + result + DELIMITER)
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the connection
            self.connection.loop.queue_in_loop(self._answered)

    def take(self, lines: list[bytes]) -> None:
        """Queue what has arrived; nothing counts behind a bad request."""
        if not self._is_ending:
            self._waiting.extend(lines)
            self._received = time.monotonic()  # of all that wait: nothing more is read until they are in work
            self.go_on()

    def go_on(self) -> None:
        """Begin what may begin, then read on or not, or end."""
        service = self._service
        while self._waiting and self._in_work < service.max_in_work and not self._is_unread:
            line = self._waiting.popleft()
            at = line.find(b":") + 1
            request = Request(line[:at], line[at:], self._received)
            if not is_puzzle(request.puzzle):
                self._waiting.clear()
                self.refuse(request.prefix, f"{line!r} is no request")
                break
            at_once = service.begin(self, request)
            if at_once is None:
                self._in_work += 1
            else:
                self.connection.send(request.prefix + at_once + DELIMITER)
        if self._waiting or self._is_unread:
            self.connection.stop_read()
        elif not self._is_ending:
            self.connection.start_read()
        elif self._in_work == 0:
            self.connection.shutdown(within_s=_PATIENCE_S)

    def refuse(self, prefix: bytes, why: str) -> None:
        """Answer what is no request, and take no more."""
        logging.info("%s is refused: %s", self.connection.peer_address, why)
        self._service.refused()
        self.connection.send(prefix + BAD_REQUEST + DELIMITER)
        self._is_ending = True

    def note_unread(self, is_unread: bool) -> None:
        """Note that the peer reads too slowly, or has caught up."""
        self._is_unread = is_unread
        self.go_on()

    def end(self) -> None:
        """End when all is answered: the peer sends no more."""
        self._is_ending = True
        self.go_on()

    def drop(self) -> None:
        """Forget what has not begun: the connection is gone."""
        self._waiting.clear()

    def _answered(self) -> None:
        self._in_work -= 1
        if self.is_wanted:
            self.go_on()


Begin: TypeAlias = Callable[[Session, Request], bytes | None]


class SudokuService:
    """Gives every connection of a server its session.

    Args:
        begin: ``(session, request)`` in the loop of the connection: have the request solved and call
            ``session.answer`` later, from any thread, and return None; or return the answer.
        max_in_work: how many requests of one connection may be begun and not answered.
        refused: called for each bad request.
    """

    def __init__(self, begin: Begin, max_in_work: int, refused: Callable[[], object] = lambda: None) -> None:
        self.begin = begin
        self.max_in_work = max_in_work
        self.refused = refused
        self._codec = LineCodec(batch_callback=self._on_lines, delimiter=DELIMITER, max_bytes=MAX_LINE_BYTES)
        self._codec.error_callback = self._on_long_line

    def serve(self, server: TcpServer) -> None:
        """Set the callbacks of *server*."""
        server.connection_callback = self._on_connection
        server.message_callback = self._codec.on_message
        server.peer_shutdown_callback = lambda connection: connection.context.end()
        server.high_water_mark = _MAX_UNREAD_BYTES
        server.high_water_mark_callback = lambda connection, unread_bytes: connection.context.note_unread(True)
        server.idle_timeouts = IdleTimeouts(stall_s=_STALL_S)
        server.low_water_mark = _UNREAD_ENOUGH_BYTES
        server.low_water_mark_callback = lambda connection: connection.context.note_unread(False)

    def _on_connection(self, connection: TcpConnection) -> None:
        logging.info("%s is %s", connection.peer_address, "up" if connection.connected else "down")
        if connection.connected:
            connection.context = Session(connection, self)
        else:
            connection.context.drop()

    @staticmethod
    def _on_lines(connection: TcpConnection, lines: list[bytes], receive_time: Timestamp) -> None:
        connection.context.take(lines)

    @staticmethod
    def _on_long_line(connection: TcpConnection, error: ProtocolError) -> None:
        connection.context.refuse(b"", str(error))  # the codec cuts it off: there is no way back into step
