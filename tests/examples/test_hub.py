"""The hub: its programs against each other, plain sockets, and hubs made one by a real NATS or Redis server."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import PATIENCE_S, eventually, installed, receive_all, receive_exactly, reset
from programs import Program, running
from targets import BlackHoles, nobody

SUBSCRIBERS = 1000


class Peer:
    """A plain blocking socket that speaks the hub's protocol."""

    def __init__(self, hub: Program, *topics: str) -> None:
        self.socket = hub.connect()
        self._number = 0
        self._lines: list[bytes] = []  # received and not yet heard, the next one last
        self._rest = b""
        if topics:
            self.subscribe(*topics)
            self.is_in()  # nothing has been published on them yet

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, text: str) -> None:
        """Send a text with its line ends."""
        self.socket.sendall(text.replace("\n", "\r\n").encode())

    def subscribe(self, *topics: str) -> None:
        self.say("".join(f"sub {topic}\n" for topic in topics))

    def publish(self, topic: str, *contents: str) -> None:
        self.say("".join(f"pub {topic}\n{content}\n" for content in contents))

    def line(self) -> str:
        while not self._lines:
            chunk = self.socket.recv(1 << 20)
            assert chunk, f"the stream ended behind {self._rest!r}"
            *lines, self._rest = (self._rest + chunk).split(b"\r\n")
            self._lines = lines[::-1]
        return self._lines.pop().decode()

    def hear(self) -> tuple[str, str]:
        """Return the next message's topic and content."""
        command, topic = self.line().split(" ", 1)
        assert command == "pub"
        return topic, self.line()

    def is_in(self) -> None:
        """Return when the hub has done all that this peer has asked for; nothing else may be under way to it."""
        self._number += 1
        topic = f"probe {id(self)} {self._number}"
        self.say(f"sub {topic}\npub {topic}\n?\nunsub {topic}\n")
        assert self.hear() == (topic, "?")


def hub(*arguments: str) -> contextlib.AbstractContextManager[Program]:
    return running("hub/hub.py", *arguments)


def sub(server: Program, *topics: str) -> Program:
    return Program("hub/sub.py", "--port", str(server.port), *topics)


def pub(server: Program, *arguments: str) -> Program:
    return Program("hub/pub.py", "--port", str(server.port), *arguments)


# --- the programs ---


@pytest.mark.parametrize("threads", ["0", "2"])
def test_what_pub_publishes_sub_prints(threads: str) -> None:
    with hub("--threads", threads) as server:
        with pub(server, "news", "kept") as first:
            assert first.wait() == 0, first.err
        with sub(server, "news", "wet weather") as listener:
            listener.wait_for_line("news: kept")
            with pub(server, "wet weather", "ümläut \x1b[31m") as second:
                assert second.wait() == 0
            listener.wait_for_line("wet weather: ümläut \N{REPLACEMENT CHARACTER}[31m")
            with pub(server, "news", "-") as lines:
                for number in range(1000):
                    lines.type(f"line {number}")
                lines.end_input()
                assert lines.wait() == 0, lines.err
            listener.wait_for_line("news: line 999")
            assert listener.out[2:] == [f"news: line {number}" for number in range(1000)]
            assert listener.end() == 0
            assert "Traceback" not in listener.err


@pytest.mark.measures_memory
def test_pub_reads_a_big_input_at_the_pace_of_the_hub() -> None:
    with hub() as server, pub(server, "bulk", "-") as publisher, Peer(server, "bulk") as listener:
        publisher.type("begin")
        assert listener.hear() == ("bulk", "begin")
        listener.say("unsub bulk\n")
        listener.is_in()
        before = publisher.peak_bytes
        for number in range(200):
            publisher.type("\n".join([f"{number} {'x' * 95}"] * 1000))
        assert publisher.peak_bytes - before < 10 << 20  # of 20 MB
        publisher.type("end")
        publisher.end_input()
        assert publisher.wait() == 0
        listener.subscribe("bulk")
        assert listener.hear() == ("bulk", "end")


def test_pub_says_what_is_wrong() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with Program("hub/pub.py", "--port", str(taken.getsockname()[1]), "news", "x") as publisher:
            assert publisher.wait() == 1
            assert "refused" in publisher.err
    with Program("hub/pub.py", "", "x") as publisher:
        assert publisher.wait() == 2
        assert "a topic has" in publisher.err
    with Program("hub/sub.py", "x" * 257) as listener:
        assert listener.wait() == 2
        assert "a topic has" in listener.err


def test_pub_ends_with_1_when_a_line_is_too_long_or_the_hub_goes(tmp_path: Path) -> None:
    with hub() as server:
        with pub(server, "news", "-") as publisher:
            publisher.type("x" * 70_000)
            publisher.end_input()
            assert publisher.wait() == 1
            assert "at most 65536 bytes" in publisher.err
        with pub(server, "news", "-") as publisher, Peer(server, "news") as listener:
            publisher.type("hello")
            assert listener.hear() == ("news", "hello")
            server.end()
            assert publisher.wait() == 1
            assert "the hub has gone" in publisher.err
            assert "Traceback" not in publisher.err


def test_pub_that_is_interrupted_before_its_message_has_left_ends_with_1() -> None:
    with contextlib.ExitStack() as stack:
        silent = BlackHoles(stack)()
        publisher = stack.enter_context(Program("hub/pub.py", "--port", str(silent.port), "news", "hello"))
        publisher.wait_for_handlers()
        assert publisher.end() == 1
        assert publisher.err == "interrupted"


def test_sub_finds_a_hub_again_that_was_restarted() -> None:
    port = str(nobody().port)
    with Program("hub/hub.py", "--port", port) as first:
        with sub(first, "news") as listener:
            listener.wait_for_log("the hub is there")
            assert first.end() == 0
            listener.wait_for_log("the hub is gone")
            with Program("hub/hub.py", "--port", port) as second, Peer(second) as publisher:
                assert second.port == int(port)
                publisher.publish("news", "last")
                listener.wait_for_line("news: last")
                publisher.publish("news", "again")
                listener.wait_for_line("news: again")
            assert listener.out == ["news: last", "news: again"]


# --- the protocol ---


@pytest.mark.parametrize("threads", ["0", "2"])
def test_the_wire_is_muduos(threads: str) -> None:
    with hub("--threads", threads) as server, server.connect() as listener, server.connect() as publisher:
        publisher.sendall(b"pub c\r\nx\ny\rz\r\r\npub a b\r\n\r\nsub a b\r\n")
        assert receive_exactly(publisher, 11) == b"pub a b\r\n\r\n"
        listener.sendall(b"sub a b\r\n")
        assert receive_exactly(listener, 11) == b"pub a b\r\n\r\n"
        for byte in b"sub c\r\nunsub a b\r\npub a b\r\nunheard\r\npub c\r\nhello\r\n":
            listener.sendall(bytes([byte]))
        expected = b"pub c\r\nx\ny\rz\r\r\npub c\r\nhello\r\n"
        assert receive_exactly(listener, len(expected)) == expected
        assert receive_exactly(publisher, 18) == b"pub a b\r\nunheard\r\n"
        publisher.shutdown(socket.SHUT_WR)
        assert receive_all(publisher) == b""


@pytest.mark.parametrize("threads", ["0", "2"])
def test_a_new_subscriber_gets_the_last_message_and_then_all_that_come(threads: str) -> None:
    with hub("--threads", threads) as server, Peer(server) as publisher, contextlib.ExitStack() as stack:
        listeners = []
        for number in range(200):
            publisher.publish("ticks", *(str(number * 10 + at) for at in range(10)))
            listener = stack.enter_context(Peer(server))
            listener.subscribe("ticks")
            listeners.append(listener)
        publisher.is_in()
        publisher.publish("ticks", "2000")
        for listener in listeners:
            ticks = [int(listener.hear()[1])]
            while ticks[-1] != 2000:
                ticks.append(int(listener.hear()[1]))
            assert ticks == list(range(ticks[0], 2001))


@pytest.mark.parametrize("threads", ["0", "2"])
def test_all_subscribers_hear_several_publishers_in_the_same_order(threads: str) -> None:
    with hub("--threads", threads) as server, contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(Peer(server, "a", "b")) for _ in range(6)]
        publishers = [stack.enter_context(Peer(server)) for _ in range(4)]
        for number in range(100):
            for who, publisher in enumerate(publishers):
                publisher.publish("ab"[number % 2], f"{who} {number}")
        heard = [[listener.hear() for _ in range(400)] for listener in listeners]
        assert all(one == heard[0] for one in heard)
        for who in range(4):
            assert [c for _, c in heard[0] if c.startswith(f"{who} ")] == [f"{who} {number}" for number in range(100)]


@pytest.mark.parametrize("threads", ["0", "2"])
def test_unsubscribed_means_unheard_and_twice_is_once(threads: str) -> None:
    with hub("--threads", threads) as server, Peer(server, "a", "b", "b") as listener, Peer(server) as publisher:
        listener.say("unsub a\nunsub a\nunsub never\n")
        listener.is_in()
        publisher.publish("a", "unheard")
        publisher.publish("b", "1")
        assert listener.hear() == ("b", "1")
        listener.say("sub b\n")  # said again: the last message again, and no second subscription
        assert listener.hear() == ("b", "1")
        publisher.publish("b", "2", "3")
        assert [listener.hear()[1], listener.hear()[1]] == ["2", "3"]


WRONG = [
    b"\r\n",
    b"sub\r\n",
    b"sub \r\n",
    b"pub \r\n",
    b"SUB a\r\n",
    b"hello there\r\n",
    b"sub " + bytes(257) + b"\r\n",
    bytes(65_538),
    b"pub a\r\n" + bytes(65_538),
]


@pytest.mark.parametrize("threads", ["0", "2"])
def test_who_breaks_the_rules_is_cut_off_behind_what_was_right(threads: str) -> None:
    with hub("--threads", threads) as server, Peer(server, "news") as listener:
        for words in WRONG:
            with server.connect() as peer:
                peer.sendall(b"pub news\r\nright\r\n" + words)
                with contextlib.suppress(ConnectionResetError):
                    assert receive_all(peer) == b"", words
            assert listener.hear() == ("news", "right")
        server.wait_for_log("is cut off", nth=len(WRONG))


# --- limits ---


@pytest.mark.parametrize("threads", ["0", "2"])
def test_who_wants_too_many_topics_is_cut_off(threads: str) -> None:
    with hub("--threads", threads) as server, Peer(server, "t1") as other, Peer(server) as greedy:
        greedy.subscribe(*(f"t{number}" for number in range(1000)))
        greedy.subscribe("t7", "t1")
        greedy.publish("t7", "heard")  # so all that it has asked for is done
        assert greedy.hear() == ("t7", "heard")
        other.publish("t1", "hello")
        assert greedy.hear() == other.hear() == ("t1", "hello")
        greedy.subscribe("t1000")
        with contextlib.suppress(ConnectionResetError):
            assert greedy.socket.recv(1) == b""
        server.wait_for_log("wants too much: cut off with 1000 topics")
        other.publish("t1", "still here")
        assert other.hear() == ("t1", "still here")


@pytest.mark.parametrize("threads", ["0", "2"])
def test_a_slow_subscriber_is_dropped_and_the_others_get_everything(threads: str) -> None:
    content = "x" * 60_000
    with hub("--threads", threads) as server, Peer(server, "bulk") as slow, Peer(server, "bulk") as other:
        with Peer(server) as publisher:
            while "is cut off" not in server.err:
                publisher.publish("bulk", content)
                assert other.hear() == ("bulk", content)
        with contextlib.suppress(ConnectionResetError):
            receive_all(slow.socket)
        other.is_in()


@pytest.mark.measures_memory
def test_last_messages_take_no_more_memory_than_they_may() -> None:
    content = "x" * 65_000
    with hub() as server, Peer(server) as publisher:
        before = server.peak_bytes
        for number in range(1500):  # more than are kept
            publisher.publish(f"topic {number}", content)
        publisher.is_in()
        publisher.subscribe("topic 0")  # forgotten
        publisher.subscribe("topic 1499")
        assert publisher.hear() == ("topic 1499", content)
        assert server.peak_bytes - before < 100 << 20


# --- many ---


@pytest.mark.parametrize("threads", ["0", "2"])
def test_a_thousand_subscribers_hear_a_broadcast(threads: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < SUBSCRIBERS + 100:
        pytest.skip(f"at most {hard} descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, SUBSCRIBERS + 100), hard))  # the hub inherits it
    try:
        with hub("--threads", threads) as server, contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(Peer(server)) for _ in range(SUBSCRIBERS)]
            for listener in listeners:
                listener.subscribe("news")
            for listener in listeners:
                listener.is_in()
            with Peer(server) as publisher:
                publisher.publish("news", *map(str, range(20)))
            for listener in listeners:
                assert [listener.hear() for _ in range(20)] == [("news", str(number)) for number in range(20)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("threads", ["0", "2"])
def test_subscribers_that_come_and_go_in_every_way_leave_nothing(threads: str) -> None:
    with hub("--threads", threads) as server, Peer(server, "news") as listener:
        descriptors = Path(f"/proc/{server.process.pid}/fd")
        before = len(list(descriptors.iterdir()))
        for number in range(100):
            peer = Peer(server)
            peer.say(f"sub news\nsub own {number}\npub news\n{number}\npub half")
            if number % 3:
                reset(peer.socket)
            else:
                peer.socket.close()
        assert server.process.poll() is None
        eventually(lambda: len(list(descriptors.iterdir())) == before)
        listener.publish("news", "end")
        while listener.hear()[1] != "end":
            pass


@pytest.mark.timeout(600)
def test_ends_in_good_order_in_the_middle_of_everything() -> None:
    with Program("hub/hub.py", "--port", "0", "--threads", "2") as server, contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(Peer(server, "news")) for _ in range(20)]
        publishers = [stack.enter_context(Peer(server)) for _ in range(4)]
        for publisher in publishers:
            publisher.publish("news", *map(str, range(5000)))
        for listener in listeners:
            listener.hear()
        assert server.end() == 0
        assert "Traceback" not in server.err
        assert "stopped" in server.err


# --- bridged ---


class Engine:
    """A real NATS or Redis server on a free port; it can be killed and started again there."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.program = installed(f"{kind}-server", "/usr/sbin", "/usr/local/sbin")
        port = nobody().port
        self.url = f"{kind}://127.0.0.1:{port}"
        self._address = "127.0.0.1", port
        self._arguments = {
            "nats": ["-a", "127.0.0.1", "-p", str(port)],
            "redis": ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)],
        }[kind]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it takes connections."""
        self._process = subprocess.Popen(
            [self.program, *self._arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

        def takes_connections() -> bool:
            with contextlib.suppress(OSError), self.connect():
                return True
            return False

        eventually(takes_connections)

    def connect(self) -> socket.socket:
        return socket.create_connection(self._address, timeout=PATIENCE_S)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)
            self._process = None

    def pause(self, paused: bool) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if paused else signal.SIGCONT)


@pytest.fixture(params=["nats", "redis"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    started = Engine(request.param, tmp_path)
    started.start()
    try:
        yield started
    finally:
        started.kill()


def wait_until_bridged(*servers: Program, times: int = 1) -> None:
    for server in servers:
        eventually(lambda s=server: s.err.count("bridge is up") == times, f"{server.err}")


def test_what_is_published_at_one_hub_is_heard_once_at_each_and_nowhere_else(engine: Engine) -> None:
    with contextlib.ExitStack() as stack:
        places = [("0", ""), ("2", "/hub"), ("1", ""), ("2", "/other")]
        hubs = [
            stack.enter_context(hub("--threads", threads, "--bridge", engine.url + name)) for threads, name in places
        ]
        wait_until_bridged(*hubs)
        *listeners, stranger = [stack.enter_context(Peer(one, "news", "end")) for one in hubs]
        expected = []
        for who, one in enumerate(hubs[:3]):
            contents = [f"{who} {number}" for number in range(100)]
            with Peer(one) as publisher:
                publisher.publish("news", *contents)
                publisher.publish("end", str(who))
            # Who hears the end of all others has heard, by then, whatever would be heard twice.
            expected += [("news", content) for content in contents] + [("end", str(who))]
            for listener in listeners:
                assert [listener.hear() for _ in range(101)] == expected[-101:]
        stranger.publish("news", "of others")
        assert stranger.hear() == ("news", "of others")
        for listener in listeners:
            listener.is_in()


def test_each_name_of_a_topic_finds_its_way_and_so_does_each_content(engine: Engine) -> None:
    topics = ["a b", "a.b", "a", ">", "*", "hub.*", "%20", "[a-z]?", "ümläut", "\t", ".", "x" * 256, "\x00"]
    content = "".join(map(chr, range(256))) + "x" * 60_000
    with hub("--bridge", engine.url) as one, hub("--bridge", engine.url) as other:
        wait_until_bridged(one, other)
        with Peer(one) as publisher, Peer(other, *topics) as listener:
            for topic in topics:
                publisher.socket.sendall(f"pub {topic}\r\n{content}\r\n".encode())
                assert listener.hear() == (topic, content)
            with Peer(other) as late:  # the last message, of a topic that was published on elsewhere
                late.subscribe("a.b")
                assert late.hear() == ("a.b", content)


def test_hubs_go_on_without_the_engine_and_find_it_again(engine: Engine) -> None:
    engine.kill()
    with hub("--bridge", engine.url) as one, hub("--threads", "2", "--bridge", engine.url) as other:
        for server in (one, other):
            server.wait_for_log("refused")
        engine.start()
        wait_until_bridged(one, other)
        with Peer(one, "news") as here, Peer(other, "news") as there, Peer(one) as publisher:
            publisher.publish("news", "before")
            assert here.hear() == there.hear() == ("news", "before")
            engine.kill()
            for server in (one, other):
                server.wait_for_log("bridge is down")
            publisher.publish("news", "alone")
            assert here.hear() == ("news", "alone")
            engine.start()
            wait_until_bridged(one, other, times=2)
            publisher.publish("news", "after")
            assert here.hear() == there.hear() == ("news", "after")
            there.publish("news", "answer")
            assert here.hear() == there.hear() == ("news", "answer")


def test_what_is_strange_at_the_engine_reaches_nobody(engine: Engine) -> None:
    origin = "0123456789abcdef"
    messages = [
        ("hub.news", "hello"),
        ("hub.news", ""),
        ("hub.news", origin),
        ("hub.news", f"{origin} 1"),
        ("hub.news", f"{origin} one no number"),
        ("hub.news", f"{origin} 1 two\r\npub news\r\nlines"),
        ("hub.news", f"{origin} 2 {'x' * 65_537}"),
        ("hub.%6eews", f"{origin} 3 another name for it"),
        ("hub.n%0d%0aews", f"{origin} 3 a topic of two lines"),
        ("hub.%zz", f"{origin} 3 no name"),
        ("hub.news", f"{origin} 4 as it should be"),
        ("hub.news", f"{origin} 4 twice"),
        ("hub.news", f"{origin} 3 too late"),
        ("hub.news", f"{origin[::-1]} 3 from elsewhere"),
        ("hub.news", f"{origin} 7 some were missed"),
    ]
    with hub("--bridge", engine.url) as server:
        wait_until_bridged(server)
        with Peer(server, "news") as listener, engine.connect() as stranger:
            if engine.url.startswith("nats"):
                stranger.sendall(b"CONNECT {}\r\n")
            for name, payload in messages:
                data = payload.encode()
                if engine.url.startswith("nats"):
                    stranger.sendall(b"PUB %b %d\r\n%b\r\n" % (name.encode(), len(data), data))
                else:
                    words = [b"PUBLISH", name.encode(), data]
                    stranger.sendall(b"*3\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))
            for content in ("as it should be", "from elsewhere", "some were missed"):
                assert listener.hear() == ("news", content)
            listener.is_in()


@pytest.mark.measures_memory
def test_an_engine_that_hangs_fills_no_memory_and_holds_nobody_up(engine: Engine) -> None:
    content = "x" * 65_000
    with hub("--bridge", engine.url) as one, hub("--bridge", engine.url) as other:
        wait_until_bridged(one, other)
        with Peer(one, "news") as here, Peer(other, "end") as there, Peer(one) as publisher:
            before = one.peak_bytes
            engine.pause(True)
            try:
                for _ in range(1000):
                    publisher.publish("news", content)
                    assert here.hear() == ("news", content)
            finally:
                engine.pause(False)
            assert one.peak_bytes - before < 48 << 20
            there.socket.settimeout(0.02)

            def is_heard() -> bool:  # what is still unsent may leave no room for a while
                publisher.publish("end", "hello")
                with contextlib.suppress(TimeoutError):
                    return there.hear() == ("end", "hello")
                return False

            eventually(is_heard)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "redis://127.0.0.1:6379/a.b", "nats://a:99999"])
def test_what_is_no_engine_is_refused(url: str) -> None:
    with Program("hub/hub.py", "--port", "0", "--bridge", url) as server:
        assert server.wait() == 2
        assert "--bridge" in server.err
        assert "Traceback" not in server.err
