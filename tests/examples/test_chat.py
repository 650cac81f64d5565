"""The chat: its server against plain sockets, and real terminal clients against each other."""

from __future__ import annotations

import contextlib
import os
import pty
import resource
import selectors
import signal
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from conftest import PATIENCE_S, receive_all, receive_exactly
from programs import Program, running

MEMBERS_OF_A_BIG_ROOM = 1000
WITHOUT_A_ROOM = (
    "chat/server_threaded.py",
    "chat/server_threaded_efficient.py",
    "chat/server_threaded_highperformance.py",
)
SERVERS = ("chat/server.py", *WITHOUT_A_ROOM)


def encode(message: bytes) -> bytes:
    return struct.pack(">i", len(message)) + message


class Member:
    """A plain blocking socket that speaks the chat's protocol."""

    def __init__(self, server: Program, name: str = "") -> None:
        self.socket = server.connect()
        if name:
            self.say(f"/name {name}")

    def __enter__(self) -> Member:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, text: str) -> None:
        """Send a line."""
        self.socket.sendall(encode(text.encode()))

    def hear(self) -> str:
        """Return the next line."""
        (length,) = struct.unpack(">i", receive_exactly(self.socket, 4))
        return receive_exactly(self.socket, length).decode()

    def is_in(self) -> None:
        """Return when the server knows this member; nothing else may be under way to it."""
        self.say("/?")
        assert self.hear().startswith("* there are ")


def client(server: Program, name: str) -> Program:
    return Program("chat/client.py", "--port", str(server.port), "--name", name)


# --- real clients ---


@pytest.mark.parametrize("threads", ["0", "2"])
def test_every_client_sees_who_joins_what_all_say_and_who_leaves(threads: str) -> None:
    with (
        running("chat/server.py", "--threads", threads) as server,
        client(server, "ann") as ann,
    ):
        ann.wait_for_line("* ann joined")
        with client(server, "bob") as bob:
            for one in (ann, bob):
                one.wait_for_line("* bob joined")
            with client(server, "cid") as cid:
                everybody = {"ann": ann, "bob": bob, "cid": cid}
                for one in everybody.values():
                    one.wait_for_line("* cid joined")
                for name, speaker in everybody.items():
                    speaker.type(f"hello, here is {name}; ümläut 猫")
                for one in everybody.values():
                    for name in everybody:
                        one.wait_for_line(f"{name}: hello, here is {name}; ümläut 猫")
                bob.type("/who")
                bob.wait_for_line("* here: ann, bob, cid; 0 without a name")

                cid.type("/quit")
                assert cid.wait() == 0, cid.err
                for one in (ann, bob):
                    one.wait_for_line("* cid left")
            bob.type("a last word")
            bob.end_input()
            assert bob.wait() == 0, bob.err
            assert bob.out[-1] == "bob: a last word"
            ann.wait_for_line("bob: a last word")
            ann.wait_for_line("* bob left")
        assert ann.end(signal.SIGINT) == 0
        for one in (ann, bob, cid):
            assert one.err == ""


def test_a_client_works_in_a_terminal() -> None:
    with running("chat/server.py", "--threads", "1") as server, Member(server) as listener:
        listener.is_in()
        master, slave = pty.openpty()
        try:
            with Program("chat/client.py", "--port", str(server.port), "--name", "tty", stdin=slave) as terminal:
                os.close(slave)
                terminal.wait_for_line("* tty joined")
                os.write(master, b"typed by hand\n")
                terminal.wait_for_line("tty: typed by hand")
                assert [listener.hear(), listener.hear()] == ["* tty joined", "tty: typed by hand"]
                os.write(master, b"\x04")  # Ctrl-D
                assert terminal.wait() == 0
                assert listener.hear() == "* tty left"
                assert terminal.err == ""
        finally:
            os.close(master)


def test_a_client_whose_terminal_goes_away_leaves() -> None:
    with running("chat/server.py") as server, Member(server) as listener:
        listener.is_in()
        master, slave = pty.openpty()
        with Program("chat/client.py", "--port", str(server.port), "--name", "tty", stdin=slave) as terminal:
            os.close(slave)
            terminal.wait_for_line("* tty joined")
            os.close(master)
            assert terminal.wait() == 0
        assert [listener.hear(), listener.hear()] == ["* tty joined", "* tty left"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_client_ends_on_a_signal_while_its_input_is_open(number: signal.Signals) -> None:
    with running("chat/server.py") as server, client(server, "ann") as ann:
        ann.wait_for_line("* ann joined")
        assert ann.end(number) == 0
        assert ann.err == ""


def test_clients_end_when_the_server_does() -> None:
    with Program("chat/server.py", "--port", "0", "--threads", "2") as server:
        with client(server, "ann") as ann, client(server, "bob") as bob:
            ann.wait_for_line("* ann joined")
            bob.wait_for_line("* bob joined")
            assert server.end() == 0
            assert ann.wait() == 0
            assert bob.wait() == 0
            assert ann.err == bob.err == ""
        assert "Traceback" not in server.err


def test_no_server_is_one_line_and_code_1() -> None:
    with socket.socket() as bound:  # bound, but not listening: connecting is refused
        bound.bind(("127.0.0.1", 0))
        with Program("chat/client.py", "--port", str(bound.getsockname()[1])) as lost:
            assert lost.wait() == 1
            assert "can't connect to" in lost.err
            assert "Traceback" not in lost.err


def test_a_client_reads_a_script_from_a_file_and_hears_all_answers(tmp_path: os.PathLike[str]) -> None:
    script = os.path.join(tmp_path, "script")
    with open(script, "w") as file:
        file.writelines(f"line {i}\n" for i in range(500))
    with running("chat/server.py", "--threads", "2") as server:
        descriptor = os.open(script, os.O_RDONLY)
        try:
            with Program(
                "chat/client.py", "--port", str(server.port), "--name", "script", stdin=descriptor
            ) as scripted:
                assert scripted.wait() == 0
                assert scripted.out == ["* script joined", *(f"script: line {i}" for i in range(500))]
        finally:
            os.close(descriptor)


def test_escape_sequences_and_forged_lines_do_not_reach_the_terminal() -> None:
    with running("chat/server.py") as server, client(server, "ann") as ann, Member(server) as mallory:
        ann.wait_for_line("* ann joined")
        evil = b"\x1b[2J\x1b]0;title\x07\x9b31m\r\nann: I never said this \xff\xfe\xe2\x80\xae\x7f\x00end"
        mallory.socket.sendall(encode(evil))
        ann.wait_for_line(
            "guest-1: \ufffd[2J\ufffd]0;title\ufffd\ufffd31m\ufffd\ufffdann: I never said this "
            "\ufffd\ufffd\ufffd\ufffd\ufffdend"
        )


def test_a_client_does_not_send_what_is_too_long() -> None:
    with running("chat/server.py") as server, client(server, "ann") as ann:
        ann.wait_for_line("* ann joined")
        ann.type("x" * 65_537)
        ann.type("after")
        ann.wait_for_log("too long, not sent: 65537 bytes")
        ann.wait_for_line("ann: after")
        assert ann.out == ["* ann joined", "ann: after"]


# --- the protocol ---


def test_messages_arrive_whole_however_the_stream_is_cut() -> None:
    with running("chat/server.py") as server, Member(server, "ann") as ann:
        assert ann.hear() == "* ann joined"
        for byte in encode(b"one byte at a time"):
            ann.socket.sendall(bytes([byte]))
        assert ann.hear() == "ann: one byte at a time"
        ann.socket.sendall(encode(b"three") + encode(b"in") + encode(b"one"))
        assert [ann.hear(), ann.hear(), ann.hear()] == ["ann: three", "ann: in", "ann: one"]


@pytest.mark.parametrize("path", SERVERS)
@pytest.mark.parametrize("length", [-1, 65_537])
def test_a_bad_length_closes_that_connection_only_and_is_logged(path: str, length: int) -> None:
    with running(path, "--threads", "1") as server, Member(server, "ann") as ann:
        assert ann.hear() == "* ann joined"
        with server.connect() as bad:
            bad.sendall(struct.pack(">i", length) + b"whatever")
            with contextlib.suppress(ConnectionResetError):
                assert receive_all(bad) == b""
        server.wait_for_log(f"a message of {length % 2**32} bytes, where 65536 are allowed; .* is cut off")
        ann.say("still here")
        assert ann.hear() == "ann: still here"


def test_the_longest_message_reaches_all_and_a_longer_line_is_refused() -> None:
    with running("chat/server.py") as server, Member(server) as other, Member(server, "ann") as ann:
        assert ann.hear() == other.hear() == "* ann joined"
        longest = "é" * ((65_536 - len("ann: ")) // 2)
        ann.say(longest)
        assert ann.hear() == f"ann: {longest}"
        assert other.hear() == f"ann: {longest}"
        ann.say("x" * 65_536)
        assert ann.hear() == "* too long: nobody heard that"
        other.is_in()


def test_a_name_belongs_to_one_member_until_it_leaves() -> None:
    with running("chat/server.py", "--threads", "2") as server, Member(server) as listener:
        listener.is_in()
        with Member(server, "ann") as ann:
            assert ann.hear() == "* ann joined"
            with Member(server, "ann") as second:
                assert second.hear() == "* the name ann is taken"
                second.say("then not")
                assert [second.hear(), second.hear()] == ["* guest-1 joined", "guest-1: then not"]
                second.say("/name eve")
                assert second.hear() == "* guest-1 is now eve"
        heard = [listener.hear() for _ in range(6)]
        assert heard[:4] == ["* ann joined", "* guest-1 joined", "guest-1: then not", "* guest-1 is now eve"]
        assert sorted(heard[4:]) == ["* ann left", "* eve left"]
        with Member(server, "ann") as successor:
            assert successor.hear() == "* ann joined"


@pytest.mark.parametrize("name", ["", "two words", "x" * 33, "guest-7", "\x1b[1m", "a\nb", "*"])
def test_a_name_that_could_deceive_is_refused(name: str) -> None:
    with running("chat/server.py") as server, Member(server) as member:
        member.say(f"/name {name}")
        assert member.hear().startswith("* a name has 1 to 32 letters")


def test_an_unknown_command_is_answered_with_those_there_are() -> None:
    with running("chat/server.py") as server, Member(server) as member:
        member.say("/dance")
        assert member.hear() == "* there are /name NAME, /who and /quit; anything else is said to all"


@pytest.mark.parametrize("path", SERVERS)
@pytest.mark.parametrize("threads", ["0", "2"])
def test_quit_is_answered_with_all_that_came_before_and_a_fin(path: str, threads: str) -> None:
    with running(path, "--threads", threads) as server, Member(server) as member:
        lines = [f"line {i}" for i in range(1000)]
        member.socket.sendall(b"".join(encode(line.encode()) for line in [*lines, "/quit", "not any more"]))
        assert member.hear() == "* guest-1 joined"
        for line in lines:
            assert member.hear() == f"guest-1: {line}"
        assert member.socket.recv(1) == b""


@pytest.mark.parametrize("path", WITHOUT_A_ROOM)
@pytest.mark.parametrize("threads", ["0", "2"])
def test_without_a_room_a_name_belongs_to_its_connection(path: str, threads: str) -> None:
    with running(path, "--threads", threads) as server, Member(server) as first, Member(server) as second:
        first.is_in()
        second.is_in()

        def heard(*lines: str) -> None:
            for member in (first, second):
                assert [member.hear() for _ in lines] == list(lines)

        first.say("a word")
        heard("* guest-1 joined", "guest-1: a word")
        second.say("/name ann")
        heard("* ann joined")
        first.say("/name ann")  # nobody knows that there is one
        heard("* guest-1 is now ann")
        first.say("/name ann")  # no news
        first.say("/name two words")
        assert first.hear().startswith("* a name has 1 to 32 letters")
        first.say("/who")
        assert first.hear() == "* there are /name NAME and /quit; anything else is said to all"
        first.say("x" * 65_536)
        assert first.hear() == "* too long: nobody heard that"
        second.say("/quit")
        assert first.hear() == "* ann left"
        assert receive_all(second.socket) in (b"", encode(b"* ann left"))
        first.say("alone")
        assert first.hear() == "ann: alone"


# --- many, and slow ones ---


@pytest.mark.parametrize("path", SERVERS)
def test_a_member_who_does_not_read_is_disconnected_and_holds_nobody_up(path: str) -> None:
    with running(path, "--threads", "2") as server, Member(server, "ann") as ann:
        assert ann.hear() == "* ann joined"
        with Member(server, "slow") as slow:
            assert ann.hear() == "* slow joined"
            long_line = "x" * 60_000
            said = 0
            slow_is_here = True
            while slow_is_here:
                assert said < 1000, "60 MB are unread and the slow member is still there"
                ann.say(long_line)
                said += 1
                while (line := ann.hear()) != f"ann: {long_line}":
                    assert line == "* slow left"
                    slow_is_here = False
            with contextlib.suppress(ConnectionResetError):
                receive_all(slow.socket)
        server.wait_for_log("[0-9]+ bytes unsent, max_output_bytes is 1048576; .* is cut off")


@pytest.mark.measures_memory
@pytest.mark.parametrize("path", SERVERS)
def test_who_floods_and_who_does_not_read_cost_bounded_memory(path: str) -> None:
    with running(path, "--threads", "2") as server, contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(Member(server)).is_in()
        before = server.peak_bytes
        with Member(server, "f" * 32) as flood, contextlib.suppress(OSError):  # cut off, for it does not read either
            for _ in range(100):
                flood.socket.sendall(encode(b"x") * 5_000)  # 38 bytes to each of 21 for every 5 that are sent
        # A mebibyte for each, what is handed out before the next is read, and what the kernel is asked to send.
        assert server.peak_bytes - before < 40 << 20


@pytest.mark.parametrize("path", ["chat/server.py", "chat/server_threaded_highperformance.py"])
def test_all_members_hear_the_same_conversation_in_the_same_order(path: str) -> None:
    with running(path, "--threads", "3") as server, contextlib.ExitStack() as stack:
        speakers = [stack.enter_context(Member(server)) for _ in range(8)]
        for speaker in speakers:
            speaker.is_in()
        each = 200
        for i in range(each):
            for number, speaker in enumerate(speakers):
                speaker.say(f"{number}.{i}")
        conversations = [[speaker.hear() for _ in range(8 * (each + 1))] for speaker in speakers]
        assert all(conversation == conversations[0] for conversation in conversations)
        said = [line.partition(": ")[2] for line in conversations[0] if not line.startswith("*")]
        for number in range(8):
            assert [text for text in said if text.startswith(f"{number}.")] == [f"{number}.{i}" for i in range(each)]


@contextlib.contextmanager
def many_descriptors(count: int) -> Iterator[None]:
    """Let this process and its children have *count* descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"this system allows {hard} descriptors, and {count} are needed")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Crowd:
    """Many members in one thread: says something with each, and collects what all hear."""

    def __init__(self, server: Program, count: int) -> None:
        self._selector = selectors.DefaultSelector()
        self.heard: dict[socket.socket, bytearray] = {}
        for _ in range(count):
            sock = server.connect()
            sock.setblocking(False)
            self.heard[sock] = bytearray()
            self._selector.register(sock, selectors.EVENT_READ)

    def all_say(self, text: bytes) -> None:
        """Send a short line with each."""
        for sock in self.heard:
            assert sock.send(encode(text)) == 4 + len(text)  # short: the kernel has room

    def hear(self, messages: int) -> dict[socket.socket, list[bytes]]:
        """Take exactly this many messages for each member."""
        deadline = time.monotonic() + 3 * PATIENCE_S
        missing = {sock for sock, stream in self.heard.items() if count_messages(stream) < messages}
        while missing:
            assert time.monotonic() < deadline, f"{len(missing)} members have not heard everything"
            for key, _ in self._selector.select(1.0):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                chunk = sock.recv(1 << 20)
                assert chunk, "a member was disconnected"
                self.heard[sock] += chunk
                if count_messages(self.heard[sock]) >= messages:
                    missing.discard(sock)
        return {sock: take_messages(stream, messages) for sock, stream in self.heard.items()}

    def close(self) -> None:
        """Close every socket."""
        self._selector.close()
        for sock in self.heard:
            sock.close()


def count_messages(stream: bytearray) -> int:
    """Count the complete messages at the front of a stream."""
    count = at = 0
    while at + 4 <= len(stream):
        at += 4 + int.from_bytes(stream[at : at + 4], "big")
        count += at <= len(stream)
    return count


def take_messages(stream: bytearray, count: int) -> list[bytes]:
    """Take *count* messages from the front of a stream."""
    messages = []
    for _ in range(count):
        end = 4 + int.from_bytes(stream[:4], "big")
        messages.append(bytes(stream[4:end]))
        del stream[:end]
    return messages


def test_a_message_reaches_each_of_1000_members_on_two_loops_and_nothing_is_lost() -> None:
    with many_descriptors(MEMBERS_OF_A_BIG_ROOM + 200), running("chat/server.py", "--threads", "2") as server:
        crowd = Crowd(server, MEMBERS_OF_A_BIG_ROOM)
        try:
            crowd.all_say(b"/who")  # the answer means: you are in
            for (answer,) in crowd.hear(1).values():
                assert answer.startswith(b"* here: nobody; ")
            with Member(server, "ann") as ann:
                assert ann.hear() == "* ann joined"
                for i in range(10):
                    ann.say(f"message {i}")
                for i in range(10):
                    assert ann.hear() == f"ann: message {i}"
                ann.say("/who")
                assert ann.hear() == f"* here: ann; {MEMBERS_OF_A_BIG_ROOM} without a name"
            expected = [b"* ann joined", *(b"ann: message %d" % i for i in range(10)), b"* ann left"]
            for heard in crowd.hear(len(expected)).values():
                assert heard == expected
            assert not any(crowd.heard.values()), "somebody heard more than was said"
        finally:
            crowd.close()
