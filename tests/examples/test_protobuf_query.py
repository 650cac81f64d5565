"""The query server and its client, each against the other and against muduo's bytes."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator

import pytest

from conftest import PATIENCE_S, receive_all, receive_exactly
from programs import Program, running
from protobuf_messages import ANSWER_FRAME, EMPTY_FRAME, QUERY_FRAME, Answer, Empty, Query, named_frame
from pymuduo import Buffer
from pymuduo.codec.protobuf import ProtobufCodec

SERVER, CLIENT = "protobuf/server.py", "protobuf/client.py"


def ask(server: Program, sent: bytes) -> bytes:
    """Return all that the server answers before it hangs up."""
    with server.connect() as client:
        client.sendall(sent)
        return receive_all(client)


def parsed(frame: bytes) -> Answer:
    """Return the one message in a frame, which must be an answer."""
    buffer = Buffer(frame)
    (answer,) = ProtobufCodec().decode(buffer)
    assert type(answer) is Answer
    assert len(buffer) == 0
    return answer


@pytest.mark.parametrize("threads", ["0", "2"])
def test_muduos_query_is_answered_and_the_connection_ended(threads: str) -> None:
    with running(SERVER, "--threads", threads) as server:
        for _ in range(3):
            answer = parsed(ask(server, QUERY_FRAME))
            assert (answer.id, answer.questioner, answer.answerer) == (1, "Chen Shuo", socket.gethostname())
            assert re.fullmatch(r"for \d+ seconds", *answer.solution)
        server.wait_for_log(r"asks 1 questions")


def test_every_question_has_an_answer() -> None:
    questions = ["Running?", "Who am I?", "What time is it?", "Why?", ""]
    with running(SERVER) as server, server.connect() as client:
        client.sendall(ProtobufCodec().encode(Query(id=-7, questioner="ann", question=questions)))
        answer = parsed(receive_all(client))
        running_for, who, when, *others = answer.solution
        assert answer.id == -7
        assert re.fullmatch(r"for \d+ seconds", running_for)
        assert who == "{}:{}".format(*client.getsockname())
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", when)
        assert others == ["nobody knows", "nobody knows"]


def test_a_query_as_large_as_a_frame_can_be_is_answered_in_part() -> None:
    codec = ProtobufCodec(max_bytes=65536)
    with running(SERVER) as server:
        answer = parsed(ask(server, codec.encode(Query(id=1, questioner="ö" * 32000))))
        assert answer.questioner == "ö" * 200
        answer = parsed(ask(server, codec.encode(Query(id=1, questioner="", question=["Who am I?"] * 5000))))
        assert len(answer.solution) == 100


def test_only_the_first_message_counts() -> None:
    with running(SERVER) as server:
        assert len(ask(server, QUERY_FRAME * 500)) == len(ask(server, QUERY_FRAME))
        assert ask(server, ANSWER_FRAME + QUERY_FRAME) == b""
        server.wait_for_log("answers what was not asked")
        assert ask(server, EMPTY_FRAME + QUERY_FRAME) == b""
        server.wait_for_log(r"sends a muduo\.Empty")
        assert ask(server, named_frame(b"google.protobuf.FileDescriptorSet", b"") + QUERY_FRAME) == b""
        server.wait_for_log(r"sends a google\.protobuf\.FileDescriptorSet")
        assert server.err.count("asks 1 questions") == 2


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"\0\0\0\1", "InvalidLength"),
        (b"\0\1\0\1", "InvalidLength"),
        (b"GET / HTTP/1.1\r\n\r\n", "InvalidLength"),
        (QUERY_FRAME[:-1] + b"\0", "CheckSumError"),
        (named_frame(b"muduo.Quest", b""), "UnknownMessageType"),
        (named_frame(b"muduo.Query", b"\x08\x01"), "ParseError"),
    ],
)
def test_what_is_no_message_is_logged_and_cut_off(sent: bytes, why: str) -> None:
    with running(SERVER) as server:
        assert ask(server, sent) == b""
        server.wait_for_log(f"{why}: .* is cut off")
        assert parsed(ask(server, QUERY_FRAME)).id == 1


def test_the_client_prints_the_answers() -> None:
    with running(SERVER, "--threads", "2") as server:
        questions = ["Running?", "Where?", "Who am I?"]
        with Program(CLIENT, "--port", str(server.port), "--name", "ann", *questions) as client:
            assert client.wait() == 0, client.err
            assert client.err == ""
            first, running_for, where, who = client.out
            assert first == f"{socket.gethostname()} answers ann, query 1:"
            assert re.fullmatch(r"for \d+ seconds", running_for)
            assert where == "nobody knows"
            assert re.fullmatch(r"127\.0\.0\.1:\d+", who)


def test_the_client_tells_that_there_was_no_answer() -> None:
    with running(SERVER) as server:
        with Program(CLIENT, "--port", str(server.port), "--empty") as client:
            assert client.wait() == 1
            assert client.out == []
            assert "has hung up without an answer" in client.err
        server.wait_for_log(r"sends a muduo\.Empty")


def test_the_client_tells_that_there_is_nobody() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with Program(CLIENT, "--port", str(taken.getsockname()[1])) as client:
            assert client.wait() == 1
            assert "can't connect" in client.err


@contextlib.contextmanager
def answering(frames: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Be muduo's query server for one client: its port, and what has arrived."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(PATIENCE_S)
                header = receive_exactly(sock, 4)
                received.append(header + receive_exactly(sock, int.from_bytes(header, "big")))
                sock.sendall(frames)
                sock.shutdown(socket.SHUT_WR)
                receive_all(sock)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], received
        finally:
            thread.join(PATIENCE_S)


def test_the_client_speaks_muduos_bytes() -> None:
    with (
        answering(ANSWER_FRAME) as (port, received),
        Program(CLIENT, "--port", str(port), "--name", "Chen Shuo", "Running?") as client,
    ):
        assert client.wait() == 0, client.err
        assert client.out == ["blog.csdn.net/Solstice answers Chen Shuo, query 1:", "Jump!", "Win!"]
        assert received == [QUERY_FRAME]


def test_the_client_prints_nothing_that_a_terminal_would_obey() -> None:
    answer = Answer(id=1, questioner="q", answerer="\x1b[2J", solution=["\x1b]0;x\x07", "a\nb\r", "ö"])
    with (
        answering(ProtobufCodec().encode_all([Empty(id=1), answer])) as (port, _),
        Program(CLIENT, "--port", str(port)) as client,
    ):
        assert client.wait() == 0, client.err
        assert client.out == ["�[2J answers q, query 1:", "�]0;x�", "a�b�", "ö"]
        assert "a muduo.Empty, and no answer" in client.err


def test_text_that_is_no_utf_8_trips_nobody() -> None:
    with running(SERVER) as server:
        # Protobuf's compiled body takes it, and the plain-Python one refuses it.
        answer = ask(server, named_frame(b"muduo.Query", b"\x08\x01\x12\x02a\xff\x1a\x01\xff"))
        assert answer == b"" or (parsed(answer).questioner, parsed(answer).solution) == ("a\ufffd", ["nobody knows"])
    frame = named_frame(b"muduo.Answer", b"\x08\x01\x12\x01\xff\x1a\x01\xff\x22\x01\xff")
    with answering(frame) as (port, _), Program(CLIENT, "--port", str(port)) as client:
        if client.wait() == 0:
            assert client.out == ["\ufffd answers \ufffd, query 1:", "\ufffd"]
        assert "Traceback" not in client.err


def test_the_client_cuts_off_a_server_that_breaks_the_rules() -> None:
    with answering(ANSWER_FRAME[:-1] + b"\0") as (port, _), Program(CLIENT, "--port", str(port)) as client:
        assert client.wait() == 1
        assert client.out == []
        assert "CheckSumError" in client.err


def test_ctrl_c_ends_a_waiting_client_which_has_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE_S)
        with Program(CLIENT, "--port", str(silent.getsockname()[1])) as client:
            sock, _ = silent.accept()
            with sock:
                sock.settimeout(PATIENCE_S)
                receive_exactly(sock, 4)
                assert client.end() == 1
            assert client.err == "interrupted"
