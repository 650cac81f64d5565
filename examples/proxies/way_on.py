"""The way on: a second connection for somebody who has come, and a pipe between the two.

What it teaches: what the proxies of this folder have in common. They differ in how they learn where to go; then each
seeks a connection on and couples it with the first one. Until that is there the first one is not read: what it says
early waits in its input buffer and in the kernel, and the pipe sends it on before everything else. It may also say
early that it has finished; that is kept as well, and passed on behind the last byte.

Who is turned away is told so, and then listened to for a while: a connection closed with unread bytes is reset, and a
reset can overtake the reason that was given.

Everything happens in the loop of who has come, so nothing here needs a lock.
"""

from __future__ import annotations

from collections.abc import Callable

from pymuduo import IdleTimeouts, InetAddress, Pipe, TcpClient, TcpConnection, pipe

_IDLE_S = 3600.0
_STALL_S = 60.0
_FAREWELL_S = 10.0  # what a peer that is turned away has to read why


class WayOn:
    """Seeks a connection on for *near* and couples the two.

    Attributes:
        near: who has come. pipe: the two, once they are coupled.
        found_callback: ``(far)`` just before that: what is sent to either of them now comes first.
        failed_callback: ``(error)`` when there is no way to the target. It may ``seek`` another one.
        closed_callback: ``(pipe)`` when both have left.
    """

    def __init__(self, near: TcpConnection, timeouts: IdleTimeouts, patience_s: float) -> None:
        self.near = near
        self.pipe: Pipe | None = None
        self.found_callback: Callable[[TcpConnection], object] | None = None
        self.failed_callback: Callable[[Exception], object] | None = None
        self.closed_callback: Callable[[Pipe], object] | None = None
        self._timeouts = timeouts
        self._patience_s = patience_s
        self._client: TcpClient | None = None

    def seek(self, target: InetAddress | tuple[str, int]) -> None:
        """Connect to *target*; a name is looked up beside the loop."""
        self.near.stop_read()
        self.near.peer_shutdown_callback = _stay_up
        client = self._client = TcpClient(
            self.near.loop, target, f"{self.near.name}-on", connect_timeout_s=self._patience_s
        )
        client.connection_callback = self._on_far
        client.connect_failed_callback = self._on_failed
        client.connect()

    def give_up(self) -> None:
        """Seek no more; two that are coupled stay so. Harmless at any time."""
        if self._client is not None:
            self._client.stop()

    def _on_far(self, far: TcpConnection) -> None:
        if not far.connected:
            return
        self._timeouts.watch(far)
        if self.found_callback is not None:
            self.found_callback(far)
        self.pipe = pipe(self.near, far)
        self.pipe.closed_callback = self.closed_callback

    def _on_failed(self, client: TcpClient, error: Exception) -> None:
        if self.failed_callback is not None:
            self.failed_callback(error)


def _stay_up(near: TcpConnection) -> None:
    """Do nothing: that there is somebody to hear of its FIN keeps *near* up. The pipe passes it on."""


def proxy_timeouts() -> IdleTimeouts:
    """Return time-outs that suit both halves: a download is not idle, and who does not read holds the other one up."""
    return IdleTimeouts(both_s=_IDLE_S, stall_s=_STALL_S)


def seconds(text: str) -> float:
    """Return a time above 0 and below a day; the type of an option."""
    value = float(text)
    if not 0 < value < 86_400:
        raise ValueError
    return value


def turn_away(connection: TcpConnection, last_words: bytes = b"") -> None:
    """Send *last_words* and finish; what the peer still sends is dropped, until it leaves or has had time enough."""
    connection.message_callback = None
    connection.peer_shutdown_callback = None
    connection.send(last_words)
    connection.shutdown(within_s=_FAREWELL_S)
    connection.start_read()
