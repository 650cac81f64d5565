"""The proxies of examples/proxies, with the clients that people use: curl, ncat, haproxy, and bytes by hand."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import os
import re
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from certificates import server_context, write_files
from conftest import PATIENCE_S, ServerThread, eventually, installed, receive_all, receive_exactly
from programs import Program, running
from pymuduo import Buffer, InetAddress, TcpConnection
from pymuduo.proxy_protocol import ProxyProtocol
from targets import BlackHoles, nobody
from web_files import FileServer, curl, fetch

SOCKS, HTTP, BALANCER = "proxies/socks.py", "proxies/http_connect.py", "proxies/load_balancer.py"
PAYLOAD = os.urandom(2_000_000)
DIGEST = hashlib.sha256(PAYLOAD).hexdigest()

# socks: replies of version 5, and the greeting that is answered with "no password needed".
HELLO, WELCOME = b"\5\1\0", b"\5\0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(PAYLOAD)
    return tmp_path


@pytest.fixture
def web_port(folder: Path) -> Iterator[int]:
    with FileServer(folder).serving() as port:
        yield port


def ncat(kind: str, proxy_port: int, port: int, *arguments: str) -> bytes:
    """Fetch the file by hand through a proxy of some kind."""
    command = [installed("ncat"), "--proxy", f"127.0.0.1:{proxy_port}", "--proxy-type", kind, *arguments]
    question = b"GET /file HTTP/1.0\r\n\r\n"
    command += ["127.0.0.1", str(port)]
    result = subprocess.run(command, check=False, input=question, capture_output=True, timeout=PATIENCE_S)
    return result.stdout.partition(b"\r\n\r\n")[2]


def request4(address: InetAddress, user: bytes = b"", command: int = 1) -> bytes:
    return struct.pack("!BBH", 4, command, address.port) + socket.inet_aton(address.ip) + user + b"\0"


def request5(address: InetAddress | tuple[bytes, int], command: int = 1, kind: int | None = None) -> bytes:
    if isinstance(address, InetAddress):
        host, port, given = socket.inet_pton(address.family, address.ip), address.port, 1 if "." in address.ip else 4
    else:
        host, port, given = bytes([len(address[0])]) + address[0], address[1], 3
    return bytes([5, command, 0, given if kind is None else kind]) + host + port.to_bytes(2, "big")


def failure5(code: int) -> bytes:
    return bytes([5, code, 0, 1]) + bytes(6)


def ask(program: Program, *pieces: bytes) -> bytes:
    """Return everything that a program answers to what is sent piece by piece."""
    with program.connect() as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            peer.sendall(piece)
        return receive_all(peer)


# --- SOCKS ---


@pytest.mark.parametrize("threads", ["0", "2"])
def test_curl_fetches_through_every_version_of_socks(web_port: int, threads: str) -> None:
    with running(SOCKS, "--threads", threads) as socks:
        for option, host in itertools.product(
            ("--socks4", "--socks4a", "--socks5", "--socks5-hostname"), ("127.0.0.1", "localhost")
        ):
            digest = fetch(option, f"127.0.0.1:{socks.port}", f"http://{host}:{web_port}/file")
            assert digest == DIGEST, (option, host)
        pattern = rf"has left 127.0.0.1:{web_port}: \d\d+ bytes sent, (\d+) received"
        assert int(socks.wait_for_log(pattern).group(1)) > len(PAYLOAD)
        # Many at a time.
        urls = [f"http://localhost:{web_port}/file?{i}" for i in range(10)]
        result = curl("--fail", "--parallel", "--socks5-hostname", f"127.0.0.1:{socks.port}", *urls)
        assert result.returncode == 0, result.stderr
        assert len(result.stdout) == 10 * len(PAYLOAD)


def test_ncat_talks_through_both_versions(web_port: int) -> None:
    with running(SOCKS) as socks:
        for kind in ("socks4", "socks5"):
            assert ncat(kind, socks.port, web_port) == PAYLOAD, kind


def test_addresses_of_ipv6_go_through_version_5(folder: Path) -> None:
    with FileServer(folder, "::1").serving() as port, running(SOCKS, "--host", "::1") as socks:
        assert fetch("--socks5", f"[::1]:{socks.port}", f"http://[::1]:{port}/file") == DIGEST
        with socket.create_connection(("::1", socks.port), PATIENCE_S) as peer:
            peer.sendall(HELLO + request5(InetAddress("::1", port)))
            reply = receive_exactly(peer, 2 + 22)
            assert reply[2:6] == b"\5\0\0\4"
            assert reply[6:22] == socket.inet_pton(socket.AF_INET6, "::1")


def test_who_has_no_password_is_turned_away(web_port: int) -> None:
    with running(SOCKS, "--user", "ann:secret word") as socks:
        proxy, url = f"127.0.0.1:{socks.port}", f"http://127.0.0.1:{web_port}/file"
        assert fetch("--socks5", proxy, "--proxy-user", "ann:secret word", url) == DIGEST
        assert ncat("socks5", socks.port, web_port, "--proxy-auth", "ann:secret word") == PAYLOAD
        for wrong in ("ann:secret", "ann:secret words", "bob:secret word"):
            assert curl("--socks5", proxy, "--proxy-user", wrong, url).returncode == 97
        assert curl("--socks5", proxy, url).returncode == 97
        assert curl("--socks4", proxy, url).returncode == 97
        assert ask(socks, HELLO) == b"\5\xff"
        assert ask(socks, b"\5\2\0\2", b"\1\3ann\6secret") == b"\5\2\1\1"
        assert ask(socks, b"\5\1\2", b"\7\3ann\6secret") == b"\5\2"  # not RFC 1929
        assert ask(socks, request4(InetAddress.loopback(web_port), b"ann"))[:2] == b"\0\x5b"


def test_the_reply_says_what_went_wrong() -> None:
    nowhere = nobody()
    unreachable = InetAddress("224.0.0.1", 80)  # the kernel connects to no group
    with running(SOCKS) as socks:
        for request, code in (
            (request5(unreachable), 3),
            (request5((b"no.such.name.invalid", 80)), 4),
            (request5((b"", 80)), 4),
            (request5((b"\xff\xfe", 80)), 4),
            (request5((b"a" * 255, 80)), 4),
            (request5((b"a..b", 80)), 4),
            (request5(nowhere), 5),
            (request5((b"localhost", nowhere.port)), 5),
            (request5(nowhere, command=2), 7),
            (request5(nowhere, command=3), 7),
            (request5(nowhere, kind=2), 8),
        ):
            assert ask(socks, HELLO + request) == WELCOME + failure5(code), request
        no = b"\0\x5b" + bytes(6)
        assert ask(socks, request4(nowhere)) == no
        assert ask(socks, request4(nowhere, command=2)) == no
        assert ask(socks, request4(InetAddress("0.0.0.9", 80)) + b"no.such.name.invalid\0") == no
        assert ask(socks, request4(InetAddress("0.0.0.9", 80)) + b"\0") == no


def test_a_way_on_that_takes_too_long_is_given_up() -> None:
    with contextlib.ExitStack() as stack:
        silent = BlackHoles(stack)()
        socks = stack.enter_context(running(SOCKS, "--patience", "0.3"))
        proxy = stack.enter_context(running(HTTP, "--patience", "0.3"))
        # Again, should the request itself have been that late.
        eventually(lambda: ask(socks, HELLO + request5(silent)) == WELCOME + failure5(6))
        request = b"CONNECT %s HTTP/1.1\r\n\r\n" % str(silent).encode()
        eventually(lambda: ask(proxy, request).startswith(b"HTTP/1.1 504 "))


def test_what_is_no_socks_is_turned_away_in_silence() -> None:
    with running(SOCKS) as socks:
        for rubbish in (b"GET / HTTP/1.0\r\n\r\n", b"\0", b"\6\1\0", bytes(100_000)):
            assert ask(socks, rubbish) == b""
        assert ask(socks, HELLO, b"\4\1\0\1") == WELCOME


def test_the_request_is_bounded_in_bytes() -> None:
    with running(SOCKS, "--patience", "3600") as socks:
        assert ask(socks, b"\4\1\0\1\1\1\1\1" + b"u" * 1000) == b""
        assert ask(socks, request4(InetAddress("0.0.0.9", 80)) + b"n" * 1000) == b""
        socks.wait_for_log("more than 520 bytes")


def test_the_request_is_bounded_in_time() -> None:
    with running(SOCKS, "--patience", "0.2") as socks:
        for beginning in (b"", b"\4", b"\5", HELLO + b"\5\1"):
            assert WELCOME.startswith(ask(socks, beginning))
        socks.wait_for_log("takes too long")
    with running(HTTP, "--patience", "0.2") as proxy:
        for beginning in (b"", b"CONNECT 127.0.0.1:80 HTTP/1.1\r\n"):
            assert ask(proxy, beginning).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("threads", ["0", "2"])
def test_a_request_may_come_byte_by_byte_or_with_everything_behind_it(threads: str) -> None:
    early = os.urandom(300_000)
    with running("echo.py") as target, running(SOCKS, "--threads", threads) as socks:
        where = InetAddress.loopback(target.port)
        by_name = request4(InetAddress("0.0.0.1", target.port), b"ann") + b"localhost\0"
        for request, answered in ((HELLO + request5(where), 12), (request4(where), 8), (by_name, 8)):
            with socks.connect() as peer:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for byte in request:
                    peer.sendall(bytes([byte]))
                receive_exactly(peer, answered)
                peer.sendall(b"hello")
                assert receive_exactly(peer, 5) == b"hello"
            # All at once, and the end with it: it comes while the proxy still connects.
            with socks.connect() as peer:
                sender = threading.Thread(
                    target=lambda peer=peer, request=request: [
                        peer.sendall(request + early),
                        peer.shutdown(socket.SHUT_WR),
                    ]
                )
                sender.start()
                assert receive_all(peer)[answered:] == early
                sender.join(PATIENCE_S)
        with socks.connect() as peer:
            peer.sendall(HELLO + request5(where) + b"tiny")
            peer.shutdown(socket.SHUT_WR)
            assert receive_all(peer)[12:] == b"tiny"


def test_a_client_that_leaves_while_its_way_is_sought_costs_nothing() -> None:
    with contextlib.ExitStack() as stack:
        silent = BlackHoles(stack)()
        socks = stack.enter_context(running(SOCKS, "--patience", "3600"))
        files = Path(f"/proc/{socks.process.pid}/fd")
        before = len(list(files.iterdir()))
        for _ in range(5):
            with socks.connect() as peer:
                peer.sendall(request4(silent))
                eventually(lambda: len(list(files.iterdir())) >= before + 2)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            eventually(lambda: len(list(files.iterdir())) == before)


# --- CONNECT ---


@pytest.mark.parametrize("threads", ["0", "2"])
def test_curl_and_ncat_tunnel_through_connect(web_port: int, threads: str) -> None:
    with running(HTTP, "--threads", threads) as proxy:
        tunnel = ("--proxytunnel", "--proxy", f"http://127.0.0.1:{proxy.port}")
        for host in ("127.0.0.1", "localhost"):
            assert fetch(*tunnel, f"http://{host}:{web_port}/file") == DIGEST
        assert ncat("http", proxy.port, web_port) == PAYLOAD
        result = curl(*tunnel, f"http://127.0.0.1:{nobody().port}/file")
        assert result.returncode == 56
        assert b"502" in result.stderr


def test_curl_speaks_tls_through_connect_with_whom_it_trusts(folder: Path) -> None:
    write_files(folder)
    with FileServer(folder, context=server_context()).serving() as port, running(HTTP) as proxy:
        request = ("--proxy", f"http://127.0.0.1:{proxy.port}", f"https://localhost:{port}/file")
        assert fetch("--cacert", str(folder / "trusted.pem"), *request) == DIGEST
        proxy.wait_for_log("has left")
        assert curl(*request).returncode == 60  # the certificate that it was shown is the server's, and not known to it


def test_curl_goes_through_socks_and_then_connect(web_port: int) -> None:
    with running(SOCKS) as socks, running(HTTP) as proxy:
        chain = ("--preproxy", f"socks5h://localhost:{socks.port}", "--proxy", f"http://localhost:{proxy.port}")
        assert fetch(*chain, "--proxytunnel", f"http://localhost:{web_port}/file") == DIGEST
        proxy.wait_for_log("has left")
        socks.wait_for_log(f"has left 127.0.0.1:{proxy.port}")


def test_connect_asks_for_a_password(web_port: int) -> None:
    with running(HTTP, "--user", "ann:secret word") as proxy:
        tunnel = ("--proxytunnel", "--proxy", f"http://127.0.0.1:{proxy.port}", f"http://127.0.0.1:{web_port}/file")
        assert fetch("--proxy-user", "ann:secret word", *tunnel) == DIGEST
        assert fetch("--proxy-user", "ann:secret word", "--proxy-anyauth", *tunnel) == DIGEST
        assert ncat("http", proxy.port, web_port, "--proxy-auth", "ann:secret word") == PAYLOAD
        for wrong in ((), ("--proxy-user", "ann:secret"), ("--proxy-user", "ann:secret word:")):
            assert b"407" in curl(*wrong, *tunnel).stderr
        request = f"CONNECT 127.0.0.1:{web_port} HTTP/1.1\r\n".encode()
        for field in (b"", b"Proxy-Authorization: Bearer x\r\n", b"Proxy-Authorization:\r\n"):
            answer = ask(proxy, request + field + b"\r\n")
            assert answer.startswith(b"HTTP/1.1 407 ")
            assert b'\r\nProxy-Authenticate: Basic realm="proxy"\r\n' in answer
        token = base64.b64encode(b"ann:secret word")
        with proxy.connect() as peer:
            peer.sendall(request + b"proxy-authorization:  BASIC " + token + b" \r\n\r\n")
            assert peer.recv(100).startswith(b"HTTP/1.1 200 ")


def test_the_status_says_what_went_wrong() -> None:
    with running(HTTP) as proxy:
        for request, status in (
            (b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 405),
            (b"connect 127.0.0.1:80 HTTP/1.1\r\n\r\n", 405),
            (b"CONNECT 127.0.0.1:80\r\n\r\n", 400),
            (b"CONNECT  127.0.0.1:80 HTTP/1.1\r\n\r\n", 400),
            (b"CONNECT 127.0.0.1:80 HTTP/2.0\r\n\r\n", 400),
            (b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nno field\r\n\r\n", 400),
            (b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost : x\r\n\r\n", 400),
            (b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
            (b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nA: b\nB: c\r\n\r\n", 400),
            (b"CONNECT 127.0.0.1 HTTP/1.1\r\n\r\n", 400),
            (b"CONNECT 127.0.0.1:0 HTTP/1.1\r\n\r\n", 400),
            (b"CONNECT 127.0.0.1:65536 HTTP/1.1\r\n\r\n", 400),
            (b"CONNECT [::1:80 HTTP/1.1\r\n\r\n", 400),
            (b"CONNECT [1.2.3]:80 HTTP/1.1\r\n\r\n", 400),
            (b"CONNECT http://127.0.0.1:80 HTTP/1.1\r\n\r\n", 400),
            (b"\r\n\r\n", 400),
            (bytes(5000) + b"\r\n\r\n", 400),
            (b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nA: " + b"b" * 9000 + b"\r\n\r\n", 431),
            (b"C" * 100_000, 431),
            (b"CONNECT %s HTTP/1.1\r\n\r\n" % str(nobody()).encode(), 502),
            (b"CONNECT no.such.name.invalid:80 HTTP/1.1\r\n\r\n", 502),
        ):
            answer = ask(proxy, request)
            assert answer.startswith(b"HTTP/1.1 %d " % status), (request[:60], answer)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert f"Content-Length: {len(body)}".encode() in head
            assert (b"Allow: CONNECT" in head) is (status == 405)


def test_what_stands_behind_the_head_goes_on() -> None:
    early = os.urandom(300_000)
    with running("echo.py") as target, running(HTTP, "--threads", "1") as proxy, proxy.connect() as peer:
        request = b"CONNECT localhost:%d HTTP/1.1\r\nHost: x\r\n\r\n" % target.port

        def send() -> None:
            peer.sendall(request + early)
            peer.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        head, _, body = receive_all(peer).partition(b"\r\n\r\n")
        sender.join(PATIENCE_S)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert body == early


# --- load balancer ---

WHO = """
import functools, http.server, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args): pass
handler = functools.partial(Handler, directory=sys.argv[2])
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), handler)
print(f"listens on 127.0.0.1:{server.server_port},", file=sys.stderr, flush=True)
server.serve_forever()
"""


class Webs:
    """HTTP servers, each a process that tells its name."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        (folder / "who.py").write_text(WHO)

    def start(self, name: str, port: int = 0) -> Program:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        (folder / "who").write_text(name)
        web = self._stack.enter_context(Program(str(self._folder / "who.py"), str(port), str(folder)))
        assert web.port
        return web


def backends(*ports: int) -> list[str]:
    return [argument for port in ports for argument in ("--backend", f"127.0.0.1:{port}")]


def report(balancer: Program, count: int) -> list[tuple[str, int, int, int]]:
    """Ask a balancer what it knows of its backends: up or down, active, total, failed."""
    pattern = re.compile(r"backend \S+, (up|down): (\d+) active, (\d+) in all, (\d+) failed")
    before = len(pattern.findall(balancer.err))
    balancer.process.send_signal(signal.SIGUSR1)
    eventually(lambda: len(pattern.findall(balancer.err)) >= before + count)
    lines = pattern.findall(balancer.err)[before : before + count]
    return [(state, int(active), int(total), int(failed)) for state, active, total, failed in lines]


@pytest.mark.parametrize("threads", ["0", "2"])
def test_clients_notice_nothing_of_a_backend_that_is_killed(tmp_path: Path, threads: str) -> None:
    with contextlib.ExitStack() as stack:
        webs = Webs(tmp_path, stack)
        ann, bob, cat = (webs.start(name, nobody().port) for name in ("ann", "bob", "cat"))
        options = ["--threads", threads, "--check", "0.2", "--fall", "2", "--rise", "2"]
        balancer = stack.enter_context(running(BALANCER, *options, *backends(ann.port, bob.port, cat.port)))
        url = f"http://127.0.0.1:{balancer.port}/who"

        def names(count: int) -> list[str]:
            result = curl("--fail", "--no-keepalive", "-H", "Connection: close", *[url] * count)
            assert result.returncode == 0, result.stderr
            return [result.stdout[at : at + 3].decode() for at in range(0, len(result.stdout), 3)]

        assert sorted(names(6)) == ["ann", "ann", "bob", "bob", "cat", "cat"]
        bob.process.kill()
        bob.wait()
        assert set(names(8)) == {"ann", "cat"}  # those who were sent to bob have gone on
        balancer.wait_for_log(f"backend 127.0.0.1:{bob.port} is down: .*refused")
        assert set(names(4)) == {"ann", "cat"}
        webs.start("bob", bob.port)
        balancer.wait_for_log(f"backend 127.0.0.1:{bob.port} is up")
        assert sorted(names(3)) == ["ann", "bob", "cat"]
        eventually(lambda: [line[1] for line in report(balancer, 3)] == [0, 0, 0])
        states, _, totals, failures = zip(*report(balancer, 3), strict=True)
        assert states == ("up", "up", "up")
        assert totals[0] >= 7
        assert failures[0] == failures[2] == 0
        assert failures[1] >= 2


def test_the_one_with_fewest_connections_is_next() -> None:
    with contextlib.ExitStack() as stack:
        targets = [stack.enter_context(running("echo.py")).port for _ in range(3)]
        balancer = stack.enter_context(running(BALANCER, "--policy", "least", "--threads", "2", *backends(*targets)))

        def active() -> list[int]:
            return [line[1] for line in report(balancer, 3)]

        def enter() -> socket.socket:
            peer = stack.enter_context(balancer.connect())
            peer.sendall(b"x")
            assert receive_exactly(peer, 1) == b"x"
            return peer

        enter()
        second = enter()
        assert active() == [1, 1, 0]
        second.close()
        eventually(lambda: active() == [1, 0, 0])
        enter()  # whose turn it is
        enter()  # whose turn it is not
        assert active() == [1, 1, 1]


def test_by_turns_is_the_default() -> None:
    with contextlib.ExitStack() as stack:
        targets = [stack.enter_context(running("echo.py")).port for _ in range(2)]
        balancer = stack.enter_context(running(BALANCER, *backends(*targets)))
        for _ in range(4):
            assert ask_echo(balancer) == b"hello"
        assert [line[2] for line in report(balancer, 2)] == [2, 2]


def ask_echo(program: Program) -> bytes:
    with program.connect() as peer:
        peer.sendall(b"hello")
        peer.shutdown(socket.SHUT_WR)
        return receive_all(peer)


def test_who_finds_no_backend_is_sent_away() -> None:
    with contextlib.ExitStack() as stack:
        nowhere, silent = nobody(), BlackHoles(stack)()
        options = ("--check", "0.2", "--patience", "0.2", "--fall", "1000000")
        balancer = stack.enter_context(running(BALANCER, *options, *backends(nowhere.port, silent.port)))
        assert ask_echo(balancer) == b""  # both were tried
        balancer.wait_for_log("finds no backend")
        (_, _, first, _), (_, _, second, _) = report(balancer, 2)
        assert (first, second) == (1, 1)


class Witness:
    """A server that expects PROXY headers: who those who say something are said to be."""

    def __init__(self) -> None:
        self.clients: list[tuple[object, object]] = []
        self.checks = 0
        self.failed: list[object] = []

    def settings(self) -> dict[str, object]:
        return {
            "proxy_protocol": ProxyProtocol(["127.0.0.1"]),
            "connection_callback": self.on_connection,
            "message_callback": self.on_message,
            "handshake_failed_callback": lambda connection, error: self.failed.append(error),
        }

    def on_connection(self, connection: TcpConnection) -> None:
        if connection.connected and connection.proxy_header.is_local:
            self.checks += 1

    def on_message(self, connection: TcpConnection, buffer: Buffer, when: object) -> None:
        self.clients.append((connection.peer_address, connection.local_address))
        connection.send(buffer)


def visit(address: tuple[str, int]) -> tuple[InetAddress, InetAddress]:
    """Be echoed; return both ends of the connection."""
    with socket.create_connection(address, PATIENCE_S) as peer:
        ends = InetAddress(*peer.getsockname()), InetAddress(*peer.getpeername())
        peer.sendall(b"hello")
        assert receive_exactly(peer, 5) == b"hello"
        return ends


def test_the_backends_are_told_who_the_client_is(serve) -> None:
    witness = Witness()
    behind: ServerThread = serve(0, **witness.settings())
    with running(BALANCER, "--proxy-protocol", "--check", "0.1", *backends(behind.port)) as balancer:
        told = [visit(("127.0.0.1", balancer.port)) for _ in range(3)]
        assert witness.clients == told
        eventually(lambda: witness.checks >= 2)
        assert [line[0] for line in report(balancer, 1)] == ["up"]
    assert witness.failed == []


HAPROXY = """
global
    maxconn 100
    nbthread 1
defaults
    mode tcp
    timeout connect 15s
    timeout client 15s
    timeout server 15s
listen front
    bind fd@{front}
    balance roundrobin
    server balancer 127.0.0.1:{balancer}
listen middle
    bind fd@{middle} accept-proxy
    server behind 127.0.0.1:{behind} send-proxy-v2
"""


def test_in_a_chain_with_haproxy_on_both_sides(serve, tmp_path: Path) -> None:
    program = installed("haproxy", "/usr/sbin", "/sbin")
    witness = Witness()
    behind: ServerThread = serve(1, **witness.settings())
    with contextlib.ExitStack() as stack:
        front, middle = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        balancer = stack.enter_context(running(BALANCER, "--proxy-protocol", *backends(middle.getsockname()[1])))
        config, log = tmp_path / "haproxy.cfg", tmp_path / "haproxy.log"
        config.write_text(
            HAPROXY.format(front=front.fileno(), middle=middle.fileno(), balancer=balancer.port, behind=behind.port)
        )
        with log.open("w") as output:
            haproxy = subprocess.Popen(
                [program, "-db", "-f", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[front.fileno(), middle.fileno()],
            )
        try:
            # haproxy passes on what the balancer has said of its client: first the test, then haproxy itself.
            told = visit(("127.0.0.1", balancer.port))
            assert witness.clients == [told]
            visit(front.getsockname())
            assert [destination for _, destination in witness.clients] == [told[1], told[1]]
            assert haproxy.poll() is None, log.read_text()
        finally:
            haproxy.kill()
            haproxy.wait(PATIENCE_S)
    assert witness.failed == []


# --- misuse ---


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        (SOCKS, ("--user", "ann")),
        (SOCKS, ("--user", ":secret")),
        (SOCKS, ("--user", "ann:" + "x" * 256)),
        (SOCKS, ("--patience", "0")),
        (HTTP, ("--patience", "nan")),
        (BALANCER, ("--backend", "nowhere")),
        (BALANCER, ("--policy", "luck")),
        (BALANCER, ("--check", "-1")),
    ],
)
def test_misuse_is_told_on_the_command_line(path: str, arguments: tuple[str, ...]) -> None:
    with Program(path, "--port", "0", *arguments) as program:
        assert program.wait() == 2
        assert "usage:" in program.err
        assert "Traceback" not in program.err
