"""A server, and peers on another host: run by ``test_network_faults.py``, as root, in a network namespace of its own.

    unshare --net python two_hosts.py pulled-cable STALL_S for-good|for-a-second
    unshare --net python two_hosts.py bad-line WORD...      (of a queueing discipline: netem loss 2%)
    unshare --net python two_hosts.py vanished-peers

The other host is a second namespace, held by a process that does nothing else, and two virtual Ethernet devices are the
cable between them. A scenario that ends well prints ``done`` at last. The peers are this file again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pymuduo import Buffer, EventLoop, EventLoopThread, IdleKind, IdleTimeouts, InetAddress, TcpConnection, TcpServer

PATIENCE_S = 60
HERE, THERE = "10.99.0.1", "10.99.0.2"
MUCH = 40_000_000
SOME = random.Random(4).randbytes(500_000)
STREAMS = 4
IDLERS = 20
HOLD = f"import signal, sys; signal.alarm({2 * PATIENCE_S}); print('here', flush=True); sys.stdin.readline()"


class Cable:
    """The other host, and what joins it to this one."""

    def __init__(self, holder: int) -> None:
        self._there = ["nsenter", "--net", "--target", str(holder)]
        run("ip", "link", "add", "ours", "type", "veth", "peer", "name", "theirs", "netns", str(holder))
        run("ip", "address", "add", f"{HERE}/24", "dev", "ours")
        run(*self._there, "ip", "address", "add", f"{THERE}/24", "dev", "theirs")
        self.plug()
        run(*self._there, "ip", "link", "set", "theirs", "up")

    def pull(self) -> None:
        run("ip", "link", "set", "ours", "down")

    def plug(self) -> None:
        run("ip", "link", "set", "ours", "up")

    def spoil(self, discipline: list[str]) -> None:
        """Let both ends send as a queueing discipline will have it."""
        run("tc", "qdisc", "add", "dev", "ours", "root", *discipline)
        run(*self._there, "tc", "qdisc", "add", "dev", "theirs", "root", *discipline)

    def lost(self) -> int:
        """Return how many packets were dropped on their way to the other host."""
        answer = subprocess.run(
            ["tc", "-s", "-j", "qdisc", "show", "dev", "ours"], check=True, capture_output=True, text=True
        )
        return sum(discipline["drops"] for discipline in json.loads(answer.stdout))

    @contextlib.contextmanager
    def peer(self, server: TcpServer, *words: str) -> Iterator[subprocess.Popen[str]]:
        """Run a peer on the other host; it is killed at the end, if it has not ended."""
        command = [*self._there, sys.executable, __file__, "peer", str(server.address.port), *words]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()


def run(*command: str) -> None:
    subprocess.run(command, check=True)


@contextlib.contextmanager
def two_hosts() -> Iterator[Cable]:
    command = ["unshare", "--net", sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        hear(holder, "here")
        yield Cable(holder.pid)


def hear(process: subprocess.Popen[str], what: str) -> None:
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said == what + "\n", f"{said!r} instead of {what!r}"


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go on\n")
    process.stdin.flush()


@contextlib.contextmanager
def serving(loop: EventLoop, **settings: Any) -> Iterator[TcpServer]:
    made: list[TcpServer] = []
    is_ready = threading.Event()

    def make() -> None:
        server = TcpServer(loop, InetAddress(HERE, 0), "here")
        for name, value in settings.items():
            setattr(server, name, value)
        server.start()
        made.append(server)
        is_ready.set()

    loop.run_in_loop(make)
    assert is_ready.wait(PATIENCE_S)
    yield made[0]
    made[0].stop(0)
    assert made[0].join(PATIENCE_S)


def eventually(condition: Callable[[], bool], message: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.001)


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def pulled_cable(cable: Cable, loop: EventLoop, stall_s: str, how_long: str) -> None:
    """The cable is pulled in the middle of a stream: for less than the time-out, or for more."""
    data = random.Random(5).randbytes(MUCH)
    whole = f"{len(data)} {hashlib.sha256(data).hexdigest()}"
    ended: list[Exception | None] = []
    has_ended = threading.Event()

    def on_connection(connection: TcpConnection) -> None:
        if connection.connected:
            connection.send(data)
            connection.shutdown()
        else:
            ended.append(connection.error)
            has_ended.set()

    settings = {"connection_callback": on_connection, "idle_timeouts": IdleTimeouts(stall_s=float(stall_s))}
    with serving(loop, **settings) as server:
        with cable.peer(server, "receive", "stop") as peer:
            hear(peer, "a million")
            cable.pull()
            go_on(peer)
            if how_long == "for-good":
                assert has_ended.wait(PATIENCE_S)
                assert isinstance(ended[0], TimeoutError), ended
                peer.kill()
                cable.plug()
            else:
                assert not has_ended.wait(1.0)
                cable.plug()
                hear(peer, whole)
        with cable.peer(server, "receive") as peer:
            hear(peer, whole)


def bad_line(cable: Cable, loop: EventLoop, *discipline: str) -> None:
    """Packets are lost, late, doubled or out of order: the streams are whole."""
    cable.spoil(list(discipline))
    with serving(loop, message_callback=echo) as server:

        def streams_have_met_a_loss() -> bool:
            with contextlib.ExitStack() as stack:
                for peer in [stack.enter_context(cable.peer(server, "echo")) for _ in range(STREAMS)]:
                    hear(peer, "the same")
            return cable.lost() > 0

        eventually(streams_have_met_a_loss, "nothing was lost")
        eventually(lambda: server.connection_count == 0, "a connection is left")


def vanished_peers(cable: Cable, loop: EventLoop) -> None:
    """Peers go without a word: no FIN, no reset. What is left of their connections is closed for its silence."""
    ended: list[Exception | None] = []
    is_pulled = False

    def on_connection(connection: TcpConnection) -> None:
        if not connection.connected:
            ended.append(connection.error)

    def on_idle(connection: TcpConnection, kind: IdleKind) -> None:
        if is_pulled:  # on a busy machine the first may have been silent for so long before the last has come
            timeouts.end(connection, kind)

    timeouts = IdleTimeouts(read_s=0.3, callback=on_idle)
    settings = {"connection_callback": on_connection, "idle_timeouts": timeouts}
    with serving(loop, message_callback=echo, **settings) as server:
        before = count_descriptors()
        with cable.peer(server, "idle") as peer:
            hear(peer, "here")
            assert server.connection_count == IDLERS
            cable.pull()
            is_pulled = True
        eventually(lambda: len(ended) == IDLERS, "those who have vanished are still there")
        assert all(isinstance(error, TimeoutError) for error in ended), ended
        eventually(lambda: server.connection_count == 0, "a connection is left")
        eventually(lambda: count_descriptors() <= before, "a descriptor is left")
        cable.plug()
        with cable.peer(server, "echo") as peer:
            hear(peer, "the same")


def echo(connection: TcpConnection, buffer: Buffer, when: object) -> None:
    connection.send(buffer)


# --- the peers, on the other host ---


def receive(port: int, stops: bool) -> None:
    """Receive to the end; in between, once, wait for a word."""
    digest, count = hashlib.sha256(), 0
    with connect(port) as sock:
        while chunk := sock.recv(65536):
            digest.update(chunk)
            count += len(chunk)
            if count > 1_000_000 and stops:
                stops = False
                print("a million", flush=True)
                sys.stdin.readline()
    print(count, digest.hexdigest(), flush=True)


def send_and_compare(port: int) -> None:
    """Send, and receive the same."""
    received = bytearray()
    with connect(port) as sock:
        sender = threading.Thread(target=sock.sendall, args=(SOME,))
        sender.start()
        while len(received) < len(SOME) and (chunk := sock.recv(65536)):
            received += chunk
        sender.join()
    print("the same" if received == SOME else f"{len(received)} bytes, wrong ones", flush=True)


def idle(port: int) -> None:
    """Be served, and say nothing more."""
    with contextlib.ExitStack() as stack:
        for _ in range(IDLERS):
            sock = stack.enter_context(connect(port))
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        print("here", flush=True)
        sys.stdin.readline()


def connect(port: int) -> socket.socket:
    return socket.create_connection((HERE, port), timeout=PATIENCE_S)


def main() -> None:
    what, *words = sys.argv[1:]
    if what == "peer":
        signal.alarm(PATIENCE_S)
        port, kind = int(words[0]), words[1]
        if kind == "receive":
            receive(port, "stop" in words)
        elif kind == "echo":
            send_and_compare(port)
        else:
            idle(port)
        return
    scenarios: dict[str, Callable[..., None]] = {
        "pulled-cable": pulled_cable,
        "bad-line": bad_line,
        "vanished-peers": vanished_peers,
    }
    with two_hosts() as cable, EventLoopThread() as loop:
        scenarios[what](cable, loop, *words)
    print("done")


if __name__ == "__main__":
    main()
