"""TCP load balancer: spreads who comes over several backends, and finds out which of them are there.

What it teaches: deciding with knowledge that goes out of date. Every few seconds each backend is connected to; after
some failures in a row it is down, after some successes up again, so that one lost packet changes nothing. Between two
checks a backend may vanish: then a client's own connect fails, which counts as a failed check, and the client is taken
to the next backend, and notices nothing but the delay.

Who chooses looks at all backends, and clients come on any loop, so the table is behind a lock; it is held for a few
comparisons. Everything else belongs to one connection and its loop, the checks to the main loop.

    python load_balancer.py --backend 127.0.0.1:2007 --backend 127.0.0.1:2008 --policy least
    kill -USR1 <process>        logs what each backend has and has had

With ``--proxy-protocol`` the backends are told who the client is (version 2's header); they have to expect it.
"""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from collections.abc import Sequence

from pymuduo import EventLoop, InetAddress, Pipe, TcpClient, TcpConnection, TcpServer, encode_proxy_header
from way_on import WayOn, proxy_timeouts, seconds, turn_away

_PATIENCE_S = 5.0
_CHECK_S = 2.0
_FALL, _RISE = 3, 2
_CHECK_HEADER = encode_proxy_header(None, None, is_local=True)


class Backend:
    """One of those who serve, and what is known of it."""

    def __init__(self, address: InetAddress) -> None:
        self.address = address
        self.is_up = True  # until a check says otherwise
        self.streak = 0  # results in a row that speak against is_up
        self.active = 0  # clients that are there or being taken there
        self.total = 0
        self.failed = 0


class Table:
    """All backends: which to take next, and which are up. From any thread."""

    def __init__(self, addresses: Sequence[InetAddress], policy: str, fall: int, rise: int) -> None:
        self.backends = [Backend(address) for address in addresses]
        self._is_least = policy == "least"
        self._fall = fall
        self._rise = rise
        self._turn = 0
        self._lock = threading.Lock()

    def take(self, tried: Sequence[Backend]) -> Backend | None:
        """Return the backend for a client who has *tried* some in vain, and count it in; None: there is none left."""
        with self._lock:
            count = len(self.backends)
            in_turn = [self.backends[(self._turn + i) % count] for i in range(count)]
            there = [backend for backend in in_turn if backend.is_up and backend not in tried]
            if not there:
                return None
            backend = min(there, key=lambda backend: backend.active) if self._is_least else there[0]
            self._turn = (self.backends.index(backend) + 1) % count
            backend.active += 1
            backend.total += 1
            return backend

    def give_back(self, backend: Backend) -> None:
        """Count a client out."""
        with self._lock:
            backend.active -= 1

    def note(self, backend: Backend, error: Exception | None) -> None:
        """Note what came of connecting to it; that may change whether it is up."""
        with self._lock:
            backend.failed += error is not None
            if backend.is_up is (error is None):
                backend.streak = 0
                return
            backend.streak += 1
            if backend.streak < (self._fall if backend.is_up else self._rise):
                return
            backend.streak = 0
            backend.is_up = error is None
        if error is None:
            logging.info("backend %s is up", backend.address)
        else:
            logging.warning("backend %s is down: %s", backend.address, error)

    def report(self) -> None:
        """Log the counts of every backend."""
        with self._lock:
            counts = [(b.address, "up" if b.is_up else "down", b.active, b.total, b.failed) for b in self.backends]
        for line in counts:
            logging.info("backend %s, %s: %d active, %d in all, %d failed to connect", *line)


class Check:
    """Connects to a backend again and again; in the main loop."""

    def __init__(self, loop: EventLoop, table: Table, backend: Backend, every_s: float, last_words: bytes) -> None:
        self._table = table
        self._backend = backend
        self._every_s = every_s
        self._last_words = last_words
        client = TcpClient(loop, backend.address, f"check-{backend.address}", connect_timeout_s=every_s / 2)
        client.connection_callback = self._on_connection
        client.connect_failed_callback = lambda client, error: table.note(backend, error)
        client.connect()
        loop.run_every(every_s, client.connect)

    def _on_connection(self, connection: TcpConnection) -> None:
        if connection.connected:
            self._table.note(self._backend, None)
            connection.send(self._last_words)
            connection.shutdown(within_s=self._every_s / 2)  # or the next check would have to wait for this one


class Balancer:
    """The server's side: what all visits have in common."""

    def __init__(self, table: Table, says_who: bool, patience_s: float) -> None:
        self.table = table
        self.says_who = says_who
        self.patience_s = patience_s
        self.timeouts = proxy_timeouts()

    def on_connection(self, near: TcpConnection) -> None:
        """Begin with who comes, and end with who leaves."""
        if near.connected:
            near.context = Visit(self, near)
            near.context.seek()
        else:
            near.context.end()
            near.context = None


class Visit:
    """One client, on its way to a backend or there."""

    def __init__(self, balancer: Balancer, near: TcpConnection) -> None:
        self._balancer = balancer
        self._near = near
        self._tried: list[Backend] = []
        self._backend: Backend | None = None
        self._way = WayOn(near, balancer.timeouts, balancer.patience_s)
        self._way.found_callback = self._on_backend
        self._way.failed_callback = self._on_no_backend
        self._way.closed_callback = self._on_closed

    def seek(self) -> None:
        """Go to the backend whose turn it is, or away if there is none."""
        self._backend = self._balancer.table.take(self._tried)
        if self._backend is None:
            logging.warning("%s finds no backend", self._near.peer_address)
            turn_away(self._near)
        else:
            self._way.seek(self._backend.address)

    def end(self) -> None:
        """Let go of what is under way: the client has left."""
        self._way.give_up()
        if self._way.pipe is None:
            self._leave_backend()

    def _leave_backend(self) -> None:
        if self._backend is not None:
            self._balancer.table.give_back(self._backend)
            self._backend = None

    def _on_backend(self, far: TcpConnection) -> None:
        assert self._backend is not None
        self._balancer.table.note(self._backend, None)
        if self._balancer.says_who:
            far.send(encode_proxy_header(self._near.peer_address, self._near.local_address))

    def _on_no_backend(self, error: Exception) -> None:
        assert self._backend is not None
        logging.info("%s goes on to the next: %s", self._near.peer_address, error)
        self._balancer.table.note(self._backend, error)
        self._tried.append(self._backend)
        self._leave_backend()
        self.seek()

    def _on_closed(self, pipe: Pipe) -> None:
        counts = pipe.forth.byte_count, pipe.back.byte_count
        addresses = pipe.one.peer_address, pipe.other.peer_address
        logging.info("%s has left %s: %d bytes sent, %d received", *addresses, *counts)
        self._leave_backend()


def main() -> None:
    """Balance until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="TCP load balancer with health checks")
    parser.add_argument("--port", type=int, default=2000, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    parser.add_argument(
        "--backend", action="append", metavar="HOST:PORT", help="one for each; 127.0.0.1:2007 if there is none"
    )
    parser.add_argument("--policy", choices=["turn", "least"], default="turn", help="by turns, or fewest connections")
    parser.add_argument(
        "--check", type=seconds, default=_CHECK_S, help="seconds between two checks; default %(default)g"
    )
    parser.add_argument("--fall", type=int, default=_FALL, help="failures until it is down; default %(default)s")
    parser.add_argument("--rise", type=int, default=_RISE, help="successes until it is up; default %(default)s")
    parser.add_argument("--patience", type=seconds, default=_PATIENCE_S, help="seconds to connect in; %(default)g")
    parser.add_argument("--proxy-protocol", action="store_true", help="tell the backends who the client is")
    options = parser.parse_args()
    if min(options.fall, options.rise) < 1:
        parser.error("it takes one check at least to change what is known of a backend")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            addresses = [InetAddress.parse(backend) for backend in options.backend or ["127.0.0.1:2007"]]
            server = TcpServer(loop, InetAddress.any(options.port), "balancer")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        table = Table(addresses, options.policy, options.fall, options.rise)
        loop.add_signal_handler(signal.SIGUSR1, table.report)
        for backend in table.backends:
            Check(loop, table, backend, options.check, _CHECK_HEADER if options.proxy_protocol else b"")
        balancer = Balancer(table, options.proxy_protocol, options.patience)
        server.connection_callback = balancer.on_connection
        server.idle_timeouts = balancer.timeouts
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
