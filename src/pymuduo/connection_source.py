"""What servers and clients have in common: each connection they make gets the same callbacks and limits."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from pymuduo import tcp_connection

if TYPE_CHECKING:
    from pymuduo.callbacks import (
        CloseCallback,
        ConnectionCallback,
        HighWaterMarkCallback,
        LowWaterMarkCallback,
        MessageCallback,
        PeerShutdownCallback,
        WriteCompleteCallback,
    )
    from pymuduo.idle_timeouts import IdleTimeouts
    from pymuduo.tcp_connection import TcpConnection

# Reads attributes as other objects do, behind their lock where there is no GIL. A compiled method of their own object
# would take them without, and might take hold of one that another thread is just letting go of.
_callbacks_of = operator.attrgetter(
    "connection_callback",
    "message_callback",
    "write_complete_callback",
    "high_water_mark_callback",
    "low_water_mark_callback",
    "peer_shutdown_callback",
    "close_callback",
)


class ConnectionSource:
    """Base of ``TcpServer`` and ``TcpClient``, whose docstrings tell what its attributes mean.

    They are read when a connection is made, in the thread that makes it, which need not be the one that sets them.
    """

    __slots__ = (
        "close_callback",
        "connection_callback",
        "high_water_mark",
        "high_water_mark_callback",
        "idle_timeouts",
        "low_water_mark",
        "low_water_mark_callback",
        "max_output_bytes",
        "message_callback",
        "peer_shutdown_callback",
        "write_complete_callback",
    )

    def __init__(self) -> None:
        self.connection_callback: ConnectionCallback | None = None
        self.message_callback: MessageCallback | None = None
        self.write_complete_callback: WriteCompleteCallback | None = None
        self.high_water_mark_callback: HighWaterMarkCallback | None = None
        self.high_water_mark = tcp_connection.HIGH_WATER_MARK
        self.low_water_mark_callback: LowWaterMarkCallback | None = None
        self.low_water_mark = tcp_connection.LOW_WATER_MARK
        self.max_output_bytes = 0
        self.peer_shutdown_callback: PeerShutdownCallback | None = None
        self.close_callback: CloseCallback | None = None
        self.idle_timeouts: IdleTimeouts | None = None

    def equip(self, connection: TcpConnection) -> None:
        """Give a new connection what its source has for it; in the thread that has made it."""
        (
            connection.connection_callback,
            connection.message_callback,
            connection.write_complete_callback,
            connection.high_water_mark_callback,
            connection.low_water_mark_callback,
            connection.peer_shutdown_callback,
            connection.close_callback,
        ) = _callbacks_of(self)
        connection.high_water_mark = self.high_water_mark
        connection.low_water_mark = self.low_water_mark
        connection.max_output_bytes = self.max_output_bytes
