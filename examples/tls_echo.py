"""Echo over TLS: the same as echo.py but for the context, and for what a handshake can tell.

What it teaches: TLS is an argument of the server. The callbacks see plain text; a connection is up when its handshake
is done, and a handshake that fails has a callback of its own. Without a certificate of yours it makes one, good for
localhost, with the openssl command.

    python tls_echo.py --certificate cert.pem --key key.pem
    openssl s_client -connect localhost:2043 -CAfile cert.pem -quiet
"""

from __future__ import annotations

import argparse
import logging
import ssl
import subprocess
from pathlib import Path

from pymuduo import Buffer, EventLoop, InetAddress, TcpConnection, TcpServer, Timestamp


def on_connection(connection: TcpConnection) -> None:
    """Log what was agreed on with whom, and how it ended."""
    tls = connection.ssl_object
    if connection.connected and tls is not None:
        resumed = ", resumed" if tls.session_reused else ""
        logging.info("%s is up: %s %s%s", connection.peer_address, tls.version(), (tls.cipher() or "?")[0], resumed)
    else:
        logging.info("%s is down%s", connection.peer_address, f": {connection.error}" if connection.error else "")


def on_handshake_failed(connection: TcpConnection, error: Exception) -> None:
    """Log who did not get through."""
    logging.info("%s failed: %s", connection.peer_address, error)


def on_message(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
    """Send back all that has arrived."""
    connection.send(buffer)


def make_certificate(certificate: Path, key: Path) -> None:
    """Make a certificate for localhost that lasts a month."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "30", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, stderr=subprocess.DEVNULL)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="echo server that speaks TLS")
    parser.add_argument("--port", type=int, default=2043, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    parser.add_argument("--certificate", type=Path, default=Path("cert.pem"), help="default %(default)s")
    parser.add_argument("--key", type=Path, default=Path("key.pem"), help="default %(default)s")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        if not options.certificate.exists() and not options.key.exists():
            make_certificate(options.certificate, options.key)
        context.load_cert_chain(options.certificate, options.key)
    except OSError as e:
        parser.error(f"no certificate {options.certificate} with key {options.key}: {e}")
    except subprocess.CalledProcessError:
        parser.error(f"openssl can't make {options.certificate} and {options.key}")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "tls-echo", ssl_context=context)
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.connection_callback = on_connection
        server.handshake_failed_callback = on_handshake_failed
        server.message_callback = on_message
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
