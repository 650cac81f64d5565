"""A link that many connections share, as both of its ends see it: who is on it, and how fast it may go.

What it teaches: back-pressure where one connection carries many. Towards the link it is simple: what a member has said
counts as under way until the link has room, and a member with much under way is not read. So a link that is slow slows
down all members alike, and none of them fills our memory.

From the link to a member it is not, because the link can't be told to bring nothing for this one and go on for the
others: the format has no window for each connection, as HTTP/2 has. When a member has a megabyte waiting, the link is
not read; all members wait until it has taken three quarters of that. It has two seconds to do so, then it is cut off.
So one that is somewhat slower sets the pace for all; one that has stopped costs the others two seconds, once.

A number is in use until both ends have said goodbye to it, each once, and each behind all that it had to say. Then
nothing that belongs to the old member can be under way when the number is given to a new one.

A ``Link`` lives in the loop of its connection, and a member's connection in any: each object says what belongs to
which loop. Nothing but calls goes between the loops, and they arrive in order.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from mux_codec import COMMAND_ID, Frame, MuxCodec
from pymuduo import Buffer, EventLoop, IdleTimeouts, TcpConnection, Timer, Timestamp

_MAX_UNDER_WAY = 64 << 10  # of a member, towards the link, before it is not read
_LINK_HIGH, _LINK_LOW = 1 << 20, 1 << 18
_MEMBER_HIGH, _MEMBER_LOW = 1 << 20, 1 << 18  # waiting for a member: the link is not read, and read again
_HOLD_UP_S = 2.0
_FAREWELL_S = 10.0
_IDLE_S = 3600.0
_STALL_S = 60.0


def member_timeouts() -> IdleTimeouts:
    """Return time-outs for members."""
    return IdleTimeouts(both_s=_IDLE_S, stall_s=_STALL_S)


def link_timeouts() -> IdleTimeouts:
    """Return time-outs for links, which may be idle, but not stuck."""
    return IdleTimeouts(stall_s=_STALL_S)


class Member:
    """One of the connections that share a link; ``attach`` gives it the connection, at once or later.

    Attributes:
        link, id, name: where it belongs; they never change.
        loop: of its connection.
    """

    def __init__(self, link: Link, number: int, name: str, loop: EventLoop) -> None:
        self.link = link
        self.id = number
        self.name = name
        self.loop = loop
        # The loop's:
        self._connection: TcpConnection | None = None
        self._early = bytearray()  # what the link has brought before there was a connection
        self._has_left = False
        self._under_way = 0  # said, and not yet on its way through the link
        self._arrived = 0  # brought by the link, and not yet taken by the peer
        # The link's loop's:
        self.waiting = 0  # brought by the link, and no receipt so far
        self.hold_up: Timer | None = None  # the link waits for this member, until then

    # --- in the member's loop ---

    def attach(self, connection: TcpConnection) -> None:
        """Serve *connection*, which is up."""
        connection.high_water_mark, connection.low_water_mark = _MEMBER_LOW + 1, _MEMBER_LOW
        connection.low_water_mark_callback = connection.write_complete_callback = self._give_receipt
        early, self._early = self._early, bytearray()
        connection.send(early)
        if self._has_left:
            say_goodbye(connection)
            return
        self._connection = connection
        connection.message_callback = self._on_message
        self._give_receipt(connection)
        connection.start_read()

    def deliver(self, data: bytes) -> None:
        """Send what the link has brought."""
        if self._has_left:
            return
        self._arrived += len(data)
        if self._connection is None:
            self._early += data
        else:
            self._connection.send(data)
            self._give_receipt(self._connection)

    def leave(self) -> None:
        """Finish in good order: what the link has brought is still sent."""
        self._has_left = True
        if self._connection is not None:
            say_goodbye(self._connection)
            self._connection = None

    def cut_off(self) -> None:
        """Finish at once."""
        self._has_left = True
        self._early.clear()
        if self._connection is not None:
            self._connection.force_close()
            self._connection = None

    def take_receipt(self, count: int) -> None:
        """Go on: the link has taken so many bytes."""
        self._under_way -= count
        if self._under_way < _MAX_UNDER_WAY and self._connection is not None:
            self._connection.start_read()

    def _on_message(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        data = buffer.retrieve_all_as_bytes()
        self._under_way += len(data)
        call_in(self.link.loop, self.link.take, self, data)
        if self._under_way >= _MAX_UNDER_WAY:
            connection.stop_read()

    def _give_receipt(self, connection: TcpConnection) -> None:
        """Tell the link what has arrived, unless the peer does not read; then this is called again when it does."""
        if self._arrived and connection.output_size <= _MEMBER_LOW:
            count, self._arrived = self._arrived, 0
            call_in(self.link.loop, self.link.take_receipt, self, count)


class Link:
    """One end of the link: its members, and what it owes them. Its loop's thread only.

    Attributes:
        connection, loop: of the link. members: by id.
        command_callback: ``(link, command)`` for what the other end says of the link itself.
        slow_callback: ``(link, member)`` when a member has held the link up for too long; it is to be removed.
    """

    def __init__(self, connection: TcpConnection, codec: MuxCodec) -> None:
        self.connection = connection
        self.loop = connection.loop
        self.members: dict[int, Member] = {}
        self.command_callback: Callable[[Link, bytes], object] | None = None
        self.slow_callback: Callable[[Link, Member], object] | None = None
        self._codec = codec
        self._owed: dict[Member, int] = {}  # receipts, for when the link has room
        self._slow: set[Member] = set()  # the link is not read while there are any
        connection.high_water_mark, connection.low_water_mark = _LINK_LOW + 1, _LINK_LOW
        connection.low_water_mark_callback = connection.write_complete_callback = self._on_room

    def add(self, member: Member) -> None:
        """Let a member use the link."""
        self.members[member.id] = member

    def remove(self, member: Member) -> bool:
        """Hear of a member no more; False if it has been removed before."""
        if self.members.get(member.id) is not member:
            return False
        del self.members[member.id]
        self._stop_waiting_for(member)
        return True

    def end(self) -> None:
        """Let all members go: the link is down."""
        members, self.members = list(self.members.values()), {}
        for member in members:
            self._stop_waiting_for(member)
            call_in(member.loop, member.leave)

    def say(self, command: str) -> None:
        """Send a command."""
        self._codec.send(self.connection, Frame(COMMAND_ID, command.encode()))

    def take(self, member: Member, data: bytes) -> None:
        """Send what a member has said."""
        if self.members.get(member.id) is not member:
            return  # it has been said goodbye to
        self._codec.send(self.connection, Frame(member.id, data))
        self._owed[member] = self._owed.get(member, 0) + len(data)
        if self.connection.output_size < _LINK_HIGH:
            self._pay()

    def take_frames(self, frames: list[Frame]) -> None:
        """Hand on what the other end has sent."""
        for number, run in itertools.groupby(frames, attrgetter("id")):
            if number == COMMAND_ID:
                for _, command in run:
                    if command and self.command_callback is not None:
                        self.command_callback(self, command)
            elif (member := self.members.get(number)) is not None:
                data = b"".join([data for _, data in run])
                member.waiting += len(data)
                if member.waiting >= _MEMBER_HIGH:
                    self._wait_for(member)
                call_in(member.loop, member.deliver, data)

    def take_receipt(self, member: Member, count: int) -> None:
        """Note that a member's peer has taken so many bytes."""
        member.waiting -= count
        if member.waiting <= _MEMBER_LOW:
            self._stop_waiting_for(member)

    def _on_room(self, connection: TcpConnection) -> None:
        if connection.output_size <= _LINK_LOW:
            self._pay()

    def _pay(self) -> None:
        owed, self._owed = self._owed, {}
        for member, count in owed.items():
            call_in(member.loop, member.take_receipt, count)

    def _wait_for(self, member: Member) -> None:
        if member not in self._slow:
            self._slow.add(member)
            member.hold_up = self.loop.run_after(_HOLD_UP_S, self._lose_patience, member)
            self.connection.stop_read()

    def _stop_waiting_for(self, member: Member) -> None:
        if member in self._slow:
            self._slow.remove(member)
            if member.hold_up is not None:
                self.loop.cancel(member.hold_up)
            if not self._slow:
                self.connection.start_read()

    def _lose_patience(self, member: Member) -> None:
        logging.warning("%s holds up the link and is cut off", member.name)
        call_in(member.loop, member.cut_off)
        if self.slow_callback is not None:
            self.slow_callback(self, member)


def say_goodbye(connection: TcpConnection) -> None:
    """Send what is queued and finish; what the peer still sends is dropped. In the connection's loop.

    Who reads on may do so for as long as it takes (but see the time-outs), who has read everything and stays is cut
    off.
    """

    def end_soon(connection: TcpConnection) -> None:
        if connection.output_size == 0:
            connection.write_complete_callback = None
            connection.force_close_with_delay(_FAREWELL_S)

    connection.message_callback = None
    connection.low_water_mark_callback = None
    connection.write_complete_callback = end_soon
    connection.shutdown()
    connection.start_read()
    end_soon(connection)


def call_in(loop: EventLoop, callback: Callable[..., object], *args: Any) -> None:
    """Call ``callback(*args)`` in *loop*: now if that is ours. One that has ended has ended its connections as well."""
    if loop.is_in_loop_thread():
        callback(*args)
    else:
        loop.post(callback, args)
