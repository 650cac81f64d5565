"""What may stand between a connection and its socket: TLS, a PROXY header, a file on its way out.

A connection without a layer reads and writes its socket itself. With one, it asks the layer: ``read`` turns what has
arrived into payload, ``append`` takes what is sent, and ``write`` puts it on the wire in whatever form. The
connection keeps what does not depend on the form: states, callbacks, marks, the interest in events.

A layer belongs to its connection's loop and is called in that loop's thread alone.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pymuduo.buffer import Buffer
    from pymuduo.send_file import FileRegion
    from pymuduo.tcp_connection import TcpConnection

_EAGAIN = errno.EAGAIN


class Layer:
    """The base of all layers; as it stands, one that nothing passes through.

    Attributes:
        connection: whose layer it is; set by ``attach``.
        unsent: bytes that wait to be written, in whatever form; the layer keeps it up to date.
        payload_sent: bytes of payload written since the connection last took note (it sets it back to 0).
        holds_up: whether the connection is not up before the layer says so (``TcpConnection.layer_is_ready``).
        holds_input: whether something that was received waits in the layer (see ``read_held``).
        ssl_object: of TLS, what was agreed on; else None.
    """

    __slots__ = ("connection", "holds_input", "holds_up", "payload_sent", "ssl_object", "unsent")

    connection: TcpConnection | None
    unsent: int
    payload_sent: int
    holds_up: bool
    holds_input: bool
    ssl_object: Any

    def __init__(self) -> None:
        self.connection = None
        self.unsent = 0
        self.payload_sent = 0
        self.holds_up = False
        self.holds_input = False
        self.ssl_object = None

    def attach(self, connection: TcpConnection) -> None:
        """Become the layer of *connection*, which may not be up yet."""
        self.connection = connection

    def start(self) -> None:
        """Begin: the socket is watched from now on. What is to be sent goes into ``unsent``; it is written next."""

    def read(self, into: Buffer) -> int:
        """Read the socket once and append payload.

        Returns:
            Bytes of payload; 0 at the end of the stream; or ``-errno``, with ``-EAGAIN`` for "none yet".
        """
        return -_EAGAIN

    def read_held(self, into: Buffer) -> int:
        """Append payload that the layer holds already, without a look at the socket; ``-EAGAIN`` if it holds none.

        The connection asks when reading starts again, and when a layer above has gone.
        """
        return -_EAGAIN

    def append(self, data: bytes) -> None:
        """Take payload to be sent; adds to ``unsent``."""
        raise NotImplementedError

    def append_file(self, region: FileRegion) -> None:
        """Take a part of a file to be sent as payload; adds to ``unsent``."""
        raise NotImplementedError

    def append_wire(self, data: bytes) -> None:
        """Take bytes that leave as they are, before everything else: what was sent before the layer was there."""
        raise NotImplementedError

    def write(self) -> int:
        """Write once to the socket.

        Returns:
            Bytes written; 0 if nothing can be written until the peer has said something; or ``-errno``.
        """
        return 0

    def end_output(self) -> None:
        """Say goodbye to the peer, behind everything sent: what that takes is added to ``unsent``. Once."""

    def output_drained(self) -> None:
        """Hear that ``unsent`` has come down to nothing."""

    def drop_output(self) -> None:
        """Forget everything unsent: the connection is broken, or closed by force."""
        self.unsent = 0

    def detach(self) -> None:
        """Let go of the connection and of everything held: the connection has ended, or has another layer now."""
        self.connection = None
