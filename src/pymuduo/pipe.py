"""Couples two connections, so that what either receives goes to the other: a relay's or a tunnel's work.

Each direction has a *source* and a *sink*, which may live on two loops. Everything that a direction knows belongs to
one of the two threads, and nothing but functors goes between them, which run in the order in which one thread queued
them. So the bytes, and the end of the stream behind them, arrive in order, and no state is shared.

Memory is bounded by the source's waiting. In one loop that is simple: as soon as the sink has *high_water_mark* bytes
that the kernel would not take, the source is not read, until they have fallen to *low_water_mark*. Between loops
the source can't see the sink's output, so the sink's side gives receipts::

    source's loop                                   sink's loop

    message: under_way += n      --- bytes --->     send; arrived += n
      under_way >= high? stop reading               output below high? receipt of what has arrived, else
                                                    wait until it is down to low, then receipt
    under_way -= n               <-- receipt n ---
      under_way <= low? read on

Bytes count as under way until there is a receipt, whether they wait in the functors, in the sink's output, or in
front of a loop that is busy. A receipt is for *low_water_mark* bytes at least, so that small messages cause few of
them; when the source has stopped, more than that has arrived or will, so it is never forgotten.

The end: the source's FIN is passed on behind its bytes, and the other direction goes on. A connection that ends in any
other way (reset, time-out, ``force_close``) takes the other one with it: that is sent what had been received, and then
closed by force, at the latest ten seconds later. With TLS its peer sees that the stream was cut off, not ended.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, TypeAlias

from pymuduo.tcp_connection import ConnectionState, TcpConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymuduo.buffer import Buffer
    from pymuduo.callbacks import CloseCallback
    from pymuduo.timestamp import Timestamp

    PipeCallback: TypeAlias = Callable[["Pipe"], object]

_log = logging.getLogger("pymuduo.pipe")

_HIGH_WATER_MARK = 1 << 20
_DRAIN_S = 10.0  # what the other one has to take what was received, once one has broken


def pipe(
    one: TcpConnection,
    other: TcpConnection,
    *,
    high_water_mark: int = _HIGH_WATER_MARK,
    low_water_mark: int | None = None,
) -> Pipe:
    """Send on to each of two connections what the other one receives, until both have ended; from any thread.

    What is in their input buffers goes first, and reading is started, so stop reading in the connection callback if
    the other connection has yet to come. A peer may say meanwhile that it sends no more; if a peer-shutdown callback
    has kept its connection up, that is passed on as well. The pipe takes the message, high- and low-water-mark,
    write-complete and peer-shutdown callbacks of both, and their marks; their connection and close callbacks are called
    as before.

    Args:
        high_water_mark: bytes on the way to one of them from which on the other one is not read.
        low_water_mark: bytes from which on it is read again; a quarter of that unless given.

    Raises:
        ValueError: the two are one, one of them is not up yet, or the marks are not above 0 and in order.

    muduo: ``examples/socks4a/tunnel.h``.
    """
    return Pipe(one, other, high_water_mark, high_water_mark // 4 if low_water_mark is None else low_water_mark)


class Pipe:
    """Two coupled connections; what ``pipe`` returns. It lives as long as one of them, referenced or not.

    Attributes:
        one, other: the connections.
        forth: the direction from *one* to *other*. back: the other direction. See their ``byte_count``.
        closed_callback: ``(pipe)``, once, when both have ended, in the loop of the one that ended last, after
            its own callbacks. Set it in the thread that makes the pipe, if that is one of the two loops', right away.
        context: yours; the library does not touch it.
    """

    __slots__ = ("__weakref__", "_lock", "_up_count", "back", "closed_callback", "context", "forth", "one", "other")

    def __init__(self, one: TcpConnection, other: TcpConnection, high_water_mark: int, low_water_mark: int) -> None:
        if one is other:
            raise ValueError(f"pipe: {one!r} can't be coupled with itself")
        for connection in (one, other):
            if connection.state is ConnectionState.CONNECTING:
                raise ValueError(f"pipe: {connection!r} is not up yet")
        if not 0 < low_water_mark < high_water_mark:
            marks = f"{low_water_mark} and {high_water_mark}"
            raise ValueError(f"pipe: low_water_mark must be above 0 and below high_water_mark, got {marks}")
        self.one = one
        self.other = other
        self.closed_callback: PipeCallback | None = None
        self.context: object = None
        self._lock = threading.Lock()
        self._up_count = 2
        self.forth = Direction(one, other, high_water_mark, low_water_mark)
        self.back = Direction(other, one, high_water_mark, low_water_mark)
        # From one loop to the other and only then back: neither is sent anything before its callbacks are set.
        first, second = (self.forth, self.back) if one.loop.is_in_loop_thread() else (self.back, self.forth)
        first.source.loop.run_in_loop(self._start, first, second)

    @property
    def is_closed(self) -> bool:
        """Whether both connections have ended; from any thread."""
        return self._up_count == 0

    def force_close(self) -> None:
        """Close both now, dropping what is under way; from any thread. Callbacks run later, in their loops."""
        self.one.force_close()
        self.other.force_close()

    # --- in the loops ---

    def _start(self, first: Direction, second: Direction) -> None:
        self._take_over(first, second)
        if first.is_same_loop:
            self._start_second(second, first)
        elif not second.source.loop.post(self._start_second, (second, first)):
            self._note_end(second)  # with its loop
        first.begin()

    def _start_second(self, second: Direction, first: Direction) -> None:
        self._take_over(second, first)
        second.begin()

    def _take_over(self, outward: Direction, inward: Direction) -> None:
        """Set the callbacks of the connection that is *outward*'s source and *inward*'s sink; in its loop."""
        connection = outward.source
        if connection.disconnected:
            self._note_end(outward)
            return
        users = connection.close_callback

        def on_close(connection: TcpConnection) -> None:
            try:
                if users is not None:
                    users(connection)
            finally:
                self._handle_end(outward, inward, users)

        connection.close_callback = on_close
        if not inward.is_broken_off:  # the other one may have ended by now
            outward.prepare_source()
            inward.prepare_sink()

    def _handle_end(self, outward: Direction, inward: Direction, users: CloseCallback | None) -> None:
        """React to the end of the connection that is *outward*'s source and *inward*'s sink; in its loop."""
        connection = outward.source
        # The pipe lives no longer than the other one, if somebody keeps this one.
        connection.message_callback = None
        connection.peer_shutdown_callback = None
        connection.low_water_mark_callback = None
        connection.write_complete_callback = None
        connection.close_callback = users
        if outward.has_ended and inward.has_said_goodbye:
            self._count_end(connection)
        else:
            self._note_end(outward)

    def _note_end(self, outward: Direction) -> None:
        outward.break_off()
        self._count_end(outward.source)

    def _count_end(self, connection: TcpConnection) -> None:
        with self._lock:
            self._up_count -= 1
            is_last = self._up_count == 0
        if is_last and self.closed_callback is not None:
            try:
                self.closed_callback(self)
            except Exception as e:
                connection.loop.handle_exception(e, self)

    def __repr__(self) -> str:
        counts = f"{self.forth.byte_count} bytes forth, {self.back.byte_count} back"
        return f"<Pipe {self.one.name} and {self.other.name}{' closed' if self.is_closed else ''}, {counts}>"


class Direction:
    """One of the two directions of a pipe.

    Attributes:
        source, sink: from where to where.
        byte_count: bytes that the source has received and handed on; exact in the source's loop.
        pause_count: how often the source was not read because too much was under way.
        has_ended: the source's peer has sent FIN; belongs to the source's loop.
        has_said_goodbye: that has been passed on to the sink. is_broken_off: the sink has been told to end because
            the source has. Both belong to the sink's loop.
    """

    __slots__ = (
        "_arrived",
        "_high_water_mark",
        "_is_paused",
        "_is_waiting",
        "_low_water_mark",
        "_under_way",
        "byte_count",
        "has_ended",
        "has_said_goodbye",
        "is_broken_off",
        "is_same_loop",
        "pause_count",
        "sink",
        "source",
    )

    def __init__(self, source: TcpConnection, sink: TcpConnection, high_water_mark: int, low_water_mark: int) -> None:
        self.source = source
        self.sink = sink
        self.is_same_loop = source.loop is sink.loop
        self._high_water_mark = high_water_mark
        self._low_water_mark = low_water_mark
        # The source's loop's.
        self.byte_count = 0
        self.pause_count = 0
        self.has_ended = False
        self._under_way = 0  # without a receipt; between loops only
        self._is_paused = False
        # The sink's loop's.
        self.has_said_goodbye = False
        self.is_broken_off = False
        self._arrived = 0  # and without a receipt; between loops only
        self._is_waiting = False  # for the sink's output to fall

    # --- in the source's loop ---

    def prepare_source(self) -> None:
        """Set what the source needs for this direction."""
        self.source.message_callback = self._take_message
        self.source.peer_shutdown_callback = self._take_end

    def begin(self) -> None:
        """Send on what had been received before, and read."""
        if self.source.message_callback == self._take_message:
            if self.source.input_size:
                self._take_message(self.source, self.source.input_buffer, None)
            if not self._is_paused:
                self.source.start_read()
            if self.source.peer_has_shut_down:
                self._take_end(self.source)  # before the pipe was there to hear it

    def break_off(self) -> None:
        """End the sink because the source has ended without a FIN."""
        if self.is_same_loop:
            self._break_off_sink()
        else:
            self.sink.loop.post(self._break_off_sink, ())

    def _take_message(self, source: TcpConnection, buffer: Buffer, receive_time: Timestamp | None) -> None:
        count = len(buffer)
        self.byte_count += count
        if self.is_same_loop:
            if not self.sink.send(buffer):
                buffer.retrieve_all()  # the sink is being closed, and takes the source with it
            elif self.sink.output_size >= self._high_water_mark:
                self._wait_for_room()
                self._pause()
            return
        self._under_way += count
        self.sink.loop.post(self._deliver, (buffer.retrieve_all_as_bytes(),))
        if self._under_way >= self._high_water_mark:
            self._pause()

    def _take_end(self, source: TcpConnection) -> None:
        if self.has_ended:
            return
        self.has_ended = True
        if self.is_same_loop:
            self._say_goodbye()
        else:
            self.sink.loop.post(self._say_goodbye, ())

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self.pause_count += 1
            self.source.stop_read()

    def _take_receipt(self, count: int) -> None:
        self._under_way -= count
        if self._under_way <= self._low_water_mark:
            self._go_on()

    def _go_on(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self.source.start_read()

    # --- in the sink's loop ---

    def prepare_sink(self) -> None:
        """Set what the sink needs for this direction."""
        self.sink.write_complete_callback = None
        self.sink.high_water_mark_callback = None
        self.sink.low_water_mark_callback = None
        self.sink.low_water_mark = self._low_water_mark
        self.sink.high_water_mark = self._high_water_mark

    def _deliver(self, data: bytes) -> None:
        self._arrived += len(data)
        self.sink.send(data)
        if self._is_waiting:
            return
        if self.sink.output_size >= self._high_water_mark:
            self._wait_for_room()
        elif self._arrived >= self._low_water_mark:
            self._send_receipt()

    def _wait_for_room(self) -> None:
        """Have the sink tell when its output has fallen. It may still leave at once: then only the second one does."""
        if not self._is_waiting:
            self._is_waiting = True
            self.sink.low_water_mark_callback = self._take_room
            self.sink.write_complete_callback = self._take_room

    def _take_room(self, sink: TcpConnection) -> None:
        if not self._is_waiting or sink.output_size > self._low_water_mark:
            return  # queued, and then more was sent
        self._is_waiting = False
        sink.low_water_mark_callback = None
        sink.write_complete_callback = None
        if self.is_same_loop:
            self._go_on()
        else:
            self._send_receipt()

    def _send_receipt(self) -> None:
        count, self._arrived = self._arrived, 0
        self.source.loop.post(self._take_receipt, (count,))

    def _say_goodbye(self) -> None:
        self.has_said_goodbye = True
        self.sink.shutdown()

    def _break_off_sink(self) -> None:
        sink = self.sink
        self.is_broken_off = True
        if sink.disconnected:
            return
        _log.debug("%s: ends because %s has", sink.name, self.source.name)
        sink.message_callback = None
        sink.peer_shutdown_callback = None
        sink.low_water_mark_callback = None
        sink.stop_read()
        if sink.output_size:
            sink.write_complete_callback = _close
            sink.force_close_with_delay(_DRAIN_S)
        else:
            sink.force_close()


def _close(connection: TcpConnection) -> None:
    connection.force_close()
