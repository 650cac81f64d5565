"""muduo's ping-pong benchmark: sessions that each bounce a block to and fro between a client and a server.

Both sides are the peer's own, two processes with a loop each: the server sends back what comes, the client sends it
again. A figure is how much the client receives a second, by number of sessions, and the processor time of both sides
together a MiB. At the end each session's block must be whole.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import time
from collections.abc import Callable
from typing import cast

from programs import command, loops
from suite import servers

_HOST = "127.0.0.1"
_CONNECT_TIMEOUT_S = 10.0
_MIB = 1 << 20


class Session:
    """The client's end of one connection: what it has received, and at the end its block."""

    def __init__(self, game: Game) -> None:
        self._game = game
        self._last = bytearray()
        self.received = 0

    def keep(self, data: bytes) -> None:
        """Take bytes that came after the end of the game."""
        self._last += data
        if len(self._last) >= len(self._game.block):
            self._game.note_whole()

    def check(self) -> None:
        """End the program unless the block is as it was sent."""
        block = self._game.block
        cut = self.received % len(block)  # what was received of it when the game ended is now its end
        right = block[cut:] + block[:cut]
        command.check(self._last == right, f"a block of {len(right)} B is not the one that was sent")


class Game:
    """The client's sessions, and the time that is measured."""

    def __init__(self, sessions: int, block_size: int, server_pid: int) -> None:
        self.block = bytes(i % 251 for i in range(block_size))
        self.sessions = [Session(self) for _ in range(sessions)]
        self.is_over = False
        self.figures: dict[str, float] = {}
        self._server_pid = server_pid
        self._whole = 0
        self._stop: Callable[[], object] = lambda: None

    def start(self, loop: loops.Loop, *, warmup_s: float, seconds: float) -> None:
        """Measure *seconds* after *warmup_s*; then let the blocks come home and stop *loop*."""
        self._stop = loop.stop
        loop.call_later(warmup_s, self._begin)
        loop.call_later(warmup_s + seconds, self._end)

    def note_whole(self) -> None:
        """Count a session whose block is back; the last one ends the game."""
        self._whole += 1
        if self._whole == len(self.sessions):
            self._stop()

    def _begin(self) -> None:
        self._server_began_s = cpu_s_of(self._server_pid)
        self._received = sum(session.received for session in self.sessions)
        self._stopwatch = command.Stopwatch()

    def _end(self) -> None:
        seconds, cpu_s = self._stopwatch.stop()
        mib = (sum(session.received for session in self.sessions) - self._received) / _MIB
        command.check(mib > 0, "nothing came back in the measured time")
        cpu_s += cpu_s_of(self._server_pid) - self._server_began_s
        name = f"sessions_{len(self.sessions)}"
        self.figures = {f"{name}_mib_per_s": mib / seconds, f"{name}_cpu_us_per_mib": cpu_s / mib * 1e6}
        self.is_over = True


def cpu_s_of(pid: int) -> float:
    """Return the processor time that process *pid* has used, in seconds."""
    clock = ~pid << 3 | 2  # what clock_getcpuclockid(3) makes of it
    return time.clock_gettime(clock)


def connected(port: int) -> socket.socket:
    """Return a connected socket for a client's loop."""
    made = socket.create_connection((_HOST, port), _CONNECT_TIMEOUT_S)
    made.setblocking(False)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def play_on_pymuduo(game: Game, port: int, *, warmup_s: float, seconds: float) -> None:
    """Play with pymuduo's connections."""
    from pymuduo import Buffer, EventLoop, InetAddress, TcpConnection, Timestamp

    def on_connection(connection: TcpConnection) -> None:
        if connection.connected:
            connection.send(game.block)

    def on_message(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        session: Session = connection.context
        if game.is_over:
            session.keep(buffer.retrieve_all_as_bytes())
        else:
            session.received += len(buffer)
            connection.send(buffer)

    with EventLoop() as loop:
        for number, session in enumerate(game.sessions):
            sock = connected(port)
            local, peer = (InetAddress(*name) for name in (sock.getsockname(), sock.getpeername()))
            connection = TcpConnection(loop, "pingpong", sock.detach(), local, peer, number)
            connection.context = session
            connection.connection_callback = on_connection
            connection.message_callback = on_message
            connection.connect_established()
        game.start(loops.of_pymuduo(loop), warmup_s=warmup_s, seconds=seconds)
        loop.run()


def play_on_asyncio(peer: str, game: Game, port: int, *, warmup_s: float, seconds: float) -> None:
    """Play with *peer*'s transports."""

    class Player(asyncio.Protocol):
        def __init__(self, session: Session) -> None:
            self._session = session

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self._write = cast(asyncio.Transport, transport).write
            self._write(game.block)

        def data_received(self, data: bytes) -> None:
            if game.is_over:
                self._session.keep(data)
            else:
                self._session.received += len(data)
                self._write(data)

    async def connect_all() -> list[asyncio.BaseTransport]:
        running = asyncio.get_running_loop()
        made: list[asyncio.BaseTransport] = []
        for session in game.sessions:
            player = Player(session)
            transport, _ = await running.create_connection(lambda player=player: player, sock=connected(port))  # type: ignore[misc]
            made.append(transport)
        return made

    loop = loops.new_asyncio_loop(peer)
    transports = loop.run_until_complete(connect_all())
    game.start(loops.of_asyncio(loop), warmup_s=warmup_s, seconds=seconds)
    loop.run_forever()
    for transport in transports:
        transport.close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Play a game with each number of sessions, each against a server of its own."""
    peer = next(peer for peer in servers.PEERS if peer.name == options.peer)
    figures: dict[str, float] = {}
    for sessions in options.sessions:
        try:
            server = servers.Server(peer, "echo", options.server_cpu)
        except servers.PeerAbsentError as e:
            raise loops.PeerAbsentError(str(e)) from None
        with server:
            game = Game(sessions, options.block_size, server.pid)
            if options.peer == "pymuduo":
                play_on_pymuduo(game, server.port, warmup_s=options.warmup, seconds=options.seconds)
            else:
                play_on_asyncio(options.peer, game, server.port, warmup_s=options.warmup, seconds=options.seconds)
            server.stop()
        for session in game.sessions:
            session.check()
        figures |= game.figures
    return figures


if __name__ == "__main__":
    parser = command.parser(__doc__)
    parser.add_argument("--server-cpu", type=int, metavar="N", help="run the server on processor N only")
    parser.add_argument("--sessions", type=command.count, nargs="+", default=[1, 10, 100], metavar="N")
    parser.add_argument("--block-size", type=command.count, default=16384, metavar="BYTES", help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="S", help="measured, a game (%(default)s)")
    parser.add_argument("--warmup", type=float, default=0.1, metavar="S", help="before that (%(default)s)")
    command.main(parser.parse_args(), measure)
