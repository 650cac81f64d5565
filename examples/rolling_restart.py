"""A rolling restart: a new process takes the place of the old one, and no request is lost.

What it teaches: a listening socket outlives the process that serves it. This process makes the socket and accepts
nothing. It starts a worker, which inherits the socket and serves. At SIGHUP it starts a second worker on the same
socket, waits until that one serves, and only then asks the first to go, which stops listening, answers what is under
way and ends. Newcomers wait in the kernel's queue meanwhile; they never find nobody. A worker that does not come up
changes nothing, and one that dies is replaced. This process touches no connection, so it needs no restart itself; if it
is killed its worker ends as well, so that the port is free for the next one.

Requests are lines. The last answer on a connection begins with "last", as an HTTP server would say "Connection: close",
so that the client knows before it sends another one.

    python rolling_restart.py         and elsewhere        nc 127.0.0.1 2007        kill -HUP <process>
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys

from pymuduo import (
    Channel,
    EventLoop,
    InetAddress,
    Socket,
    TcpConnection,
    TcpServer,
    Timestamp,
    handover_environment,
    inherited_sockets,
)
from pymuduo.codec import LineCodec

_GRACE_S = 10.0
_RETRY_S = 1.0
_LOOK_S = 0.5


def work(parent: int) -> None:
    """Serve on the inherited socket until SIGTERM or the end of the parent, then answer what is under way."""
    with EventLoop() as loop:
        loop.quit_on_signals()

        def look_after_parent() -> None:
            if os.getppid() != parent:
                loop.quit()

        loop.run_every(_LOOK_S, look_after_parent)
        ((_, listening),) = inherited_sockets()
        server = TcpServer(loop, None, "worker", listening=listening)

        def on_line(connection: TcpConnection, line: bytes, receive_time: Timestamp) -> None:
            answer = b"%d %s" % (os.getpid(), line)
            if server.is_stopping:
                codec.send(connection, b"last " + answer)
                connection.shutdown()
            else:
                codec.send(connection, answer)

        codec = LineCodec(on_line)
        server.message_callback = codec.on_message
        server.start()
        os.write(sys.stdout.fileno(), b"ready\n")  # in one piece: the parent closes its end when it has read
        loop.run()
        server.stop(drain_s=1.0, grace_s=_GRACE_S)
        server.join()


class Supervisor:
    """Owns the socket, starts workers, and lets the old one go when the new one serves."""

    def __init__(self, loop: EventLoop, listening: Socket) -> None:
        self.loop = loop
        self.listening = listening
        self.serving: subprocess.Popen[bytes] | None = None
        self.starting: subprocess.Popen[bytes] | None = None
        self.ending: list[subprocess.Popen[bytes]] = []

    def start_worker(self) -> None:
        """Start a worker, unless one is starting already."""
        if self.starting is not None:
            logging.info("a worker is starting already")
            return
        environment, descriptors = handover_environment([self.listening])
        worker = subprocess.Popen(
            [sys.executable, __file__, "--worker", str(os.getpid())],
            env={**os.environ, **environment},
            pass_fds=descriptors,
            stdout=subprocess.PIPE,
        )
        self.starting = worker
        assert worker.stdout is not None
        channel = Channel(self.loop, worker.stdout.fileno())

        def on_word(*_: object) -> None:
            assert worker.stdout is not None
            said = os.read(worker.stdout.fileno(), 100)
            channel.disable_all()
            channel.remove()
            worker.stdout.close()
            self.starting = None
            if said.startswith(b"ready"):
                self.put_in_service(worker)
            else:
                logging.error("the new worker %d did not come up; nothing changes", worker.pid)
                self.dismiss(worker)
                self.loop.run_after(_RETRY_S, self.ensure_service)

        channel.read_callback = on_word
        channel.close_callback = on_word  # a pipe whose writer is gone has nothing to read any more: this is called
        channel.enable_reading()

    def ensure_service(self) -> None:
        """Start a worker if none serves."""
        if self.serving is None and self.starting is None:
            self.start_worker()

    def put_in_service(self, worker: subprocess.Popen[bytes]) -> None:
        """Let the newcomer serve, and the one before it go."""
        logging.info("worker %d serves", worker.pid)
        if self.serving is not None:
            self.dismiss(self.serving)
        self.serving = worker

    def dismiss(self, worker: subprocess.Popen[bytes]) -> None:
        """Ask a worker to end; it answers what is under way first."""
        worker.terminate()
        self.ending.append(worker)

    def look_after_workers(self) -> None:
        """Take note of the workers that have ended; start another if it was the one that serves."""
        self.ending = [worker for worker in self.ending if worker.poll() is None]
        if self.serving is not None and self.serving.poll() is not None:
            logging.error("worker %d ended with %s", self.serving.pid, self.serving.returncode)
            self.serving = None
            self.loop.run_after(_RETRY_S, self.ensure_service)

    def stop(self) -> None:
        """End every worker, and wait for them."""
        workers = [worker for worker in (self.serving, self.starting, *self.ending) if worker is not None]
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()


def listen(port: int) -> Socket:
    """Return the socket that outlives the workers."""
    address = InetAddress.any(port)
    listening = Socket.create(address.family)
    listening.set_reuse_address(True)
    listening.bind(address)
    listening.listen()
    return listening


def supervise(listening: Socket) -> None:
    """Keep a worker serving until Ctrl-C or SIGTERM."""
    with EventLoop() as loop:
        supervisor = Supervisor(loop, listening)
        loop.quit_on_signals()
        loop.add_signal_handler(signal.SIGHUP, supervisor.start_worker)
        loop.add_signal_handler(signal.SIGCHLD, supervisor.look_after_workers)
        supervisor.start_worker()
        logging.info("rolling_restart listens on %s, process %d", listening.local_address, os.getpid())
        loop.run()
        supervisor.stop()
    listening.close()


def main() -> None:
    """Be the supervisor, or one of its workers."""
    parser = argparse.ArgumentParser(description="line server that is restarted by SIGHUP without losing a request")
    parser.add_argument("--port", type=int, default=2007, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--worker", type=int, metavar="PARENT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.worker is not None:
        work(options.worker)
        return
    try:
        listening = listen(options.port)
    except (OSError, ValueError) as e:
        parser.error(str(e))
    supervise(listening)


if __name__ == "__main__":
    main()
