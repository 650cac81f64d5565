"""A Redis server: strings, counters, hashes, lists, sets, expiry, publish and subscribe, transactions.

What it teaches: a whole protocol on top of a codec, fast. ``RespCodec`` hands over all requests that a read has
brought; each state of a client has a table of commands; the replies of a batch leave in one piece. And what else a real
protocol brings along: clients that wait for each other, messages that nobody asked for, replies larger than a slow
client wants to read.

There is one keyspace for all loops. Whoever serves a batch of requests holds its lock, so with ``--threads`` clients
are read and parsed side by side, and served one batch after another. What clients store stays in memory until they
delete it or it expires; there is no other limit to it, and nothing is written to disk.

There are the commands of Redis 7.0 for these types, with Redis's own replies, except LCS, LMPOP, BLMPOP, SORT, DUMP,
RESTORE, OBJECT, MOVE and SWAPDB; and of those that watch over a server INFO, TIME, CONFIG GET and CLIENT LIST. There
are no other types (sorted sets, streams, bitmaps, …), no scripts, no second database, no users, no replication. So
``redis-benchmark`` needs ``-t``: its own list has sorted sets in it.

Read it from the outside in:

1. here; then ``redis_service``: a batch of requests from the lock to the reply, and clients that have to wait;
2. ``redis_client``: what is known of a client; ``redis_commands``: its tables; ``redis_replies``: bytes that it gets;
3. ``redis_store``: keys, changes, expiry; ``redis_members``: how to walk through what changes;
4. the types, in any order: ``redis_strings`` (with ``redis_floats``), ``redis_hashes``, ``redis_lists``,
   ``redis_sets``, and ``redis_keys`` for all of them (with ``redis_glob`` and ``redis_scan``);
5. what goes on between clients: ``redis_transactions``, ``redis_pubsub``, ``redis_blocking``;
6. ``redis_connection``: what a client says of itself and asks of the server.

    python server.py --threads 2        and elsewhere        redis-cli, or redis-benchmark -P 16 -t get,set
"""

from __future__ import annotations

import argparse
import logging

from pymuduo import EventLoop, InetAddress, TcpServer
from redis_service import Service

_SWEEP_S = 0.1


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="Redis server: keeps what it is told in memory")
    parser.add_argument("--port", type=int, default=6379, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        service = Service()
        loop.run_every(_SWEEP_S, service.sweep, loop)
        try:
            server = TcpServer(loop, InetAddress.loopback(options.port), "redis")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.connection_callback = service.on_connection
        server.message_callback = service.codec.on_message
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
