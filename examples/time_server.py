"""Time (RFC 868): send the seconds since 1900 as four bytes, and hang up.

What it teaches: binary data in network byte order. ``struct`` packs it here; a ``Buffer`` with ``append_int32`` would
do as well, but its integers are signed and this one is not. (Not called ``time.py``, because Python would then find
this file where it looks for the module.) How the connection ends is explained in daytime.py.

    python time_server.py        and elsewhere        nc 127.0.0.1 2037 | od -A n -t u4 --endian=big
"""

from __future__ import annotations

import argparse
import logging
import struct
import time

from pymuduo import EventLoop, InetAddress, TcpConnection, TcpServer

_FROM_1900_TO_1970_S = 2_208_988_800
_PATIENCE_S = 10.0


def on_connection(connection: TcpConnection) -> None:
    """Log who comes and who leaves; tell the time and hang up."""
    logging.info("%s is %s", connection.peer_address, "up" if connection.connected else "down")
    if connection.connected:
        since_1900 = int(time.time()) + _FROM_1900_TO_1970_S
        connection.send(struct.pack(">I", since_1900 & 0xFFFFFFFF))  # begins again at 0 in February 2036
        connection.shutdown(within_s=_PATIENCE_S)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="time server: sends the seconds since 1900, and hangs up")
    parser.add_argument("--port", type=int, default=2037, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "time")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.connection_callback = on_connection
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
