"""The word count: hashers and receivers as processes, their totals against a count in this one."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections import Counter
from pathlib import Path

import pytest

from conftest import receive_all
from programs import Program

WORDS = [f"word{number}".encode() for number in range(5000)] + [b"\\end", "naïve".encode(), b"\xff"]


def written(path: Path, seed: int, count: int) -> Counter[bytes]:
    """Write words to a file, apart by blanks of all kinds, and return how often each is there."""
    chance = random.Random(seed)
    words = [chance.choice(WORDS) for _ in range(count)]
    path.write_bytes(
        b"".join(word + chance.choice([b" ", b"\n", b"\r\n", b"\t", b"  "]) for word in words[:-1]) + words[-1]
    )
    return Counter(words)


def totals(path: Path) -> Counter[bytes]:
    """Return what a receiver has written."""
    counts: Counter[bytes] = Counter()
    for line in path.read_bytes().splitlines():
        word, count = line.split(b"\t")
        assert word not in counts
        counts[word] = int(count)
    return counts


def test_several_hashers_and_receivers_count_every_word_once(tmp_path: Path) -> None:
    expected = Counter[bytes]()
    files = [tmp_path / f"text{number}" for number in range(4)]
    for seed, file in enumerate(files):
        expected += written(file, seed, 60_000)
    with contextlib.ExitStack() as stack:
        outs = [tmp_path / f"totals{number}" for number in range(3)]
        receivers = [
            stack.enter_context(Program("wordcount/receiver.py", "--port", "0", "--senders", "2", "--out", str(out)))
            for out in outs
        ]
        ends = [argument for receiver in receivers for argument in ("--to", f"127.0.0.1:{receiver.port}")]
        hashers = [
            stack.enter_context(Program("wordcount/hasher.py", *map(str, share), *ends))
            for share in (files[:3], files[3:])
        ]
        for program in (*hashers, *receivers):
            assert program.wait() == 0, program.err
    shares = [totals(out) for out in outs]
    assert sum(shares, Counter()) == expected
    assert all(len(share) > 1000 for share in shares)
    assert sum(len(share) for share in shares) == len(expected)  # no word at two receivers


def test_an_empty_file_is_no_words(tmp_path: Path) -> None:
    text, out = tmp_path / "text", tmp_path / "out"
    text.touch()
    with Program("wordcount/receiver.py", "--port", "0", "--out", str(out)) as receiver:
        with Program("wordcount/hasher.py", str(text), "--to", f"127.0.0.1:{receiver.port}") as hasher:
            assert hasher.wait() == 0, hasher.err
        assert receiver.wait() == 0, receiver.err
    assert out.read_bytes() == b""


@pytest.mark.measures_memory
def test_a_receiver_that_does_not_read_holds_up_the_hasher_in_bounded_memory(tmp_path: Path) -> None:
    text = tmp_path / "text"
    line = b" ".join(os.urandom(8).hex().encode() for _ in range(1000)) + b"\n"
    text.write_bytes(line * 2000)  # 34 MB
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with Program("wordcount/hasher.py", str(text), "--to", f"127.0.0.1:{listener.getsockname()[1]}") as hasher:
            peer, _ = listener.accept()
            with peer:
                received = peer.recv(100)
                total = Counter[bytes]()
                while chunk := peer.recv(1 << 20):
                    received += chunk
                    *lines, received = received.split(b"\r\n")
                    for word, _, count in (entry.rpartition(b"\t") for entry in lines if entry != b"\\end"):
                        total[word] += int(count)
                assert set(total.values()) == {2000}
                assert len(total) == 1000
                assert hasher.peak_bytes < 120_000_000  # the interpreter alone takes 25,000,000
            assert hasher.wait() == 0, hasher.err


def test_a_sender_that_breaks_off_fails_the_totals(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Program("wordcount/receiver.py", "--port", "0", "--out", str(out)) as receiver:
        with receiver.connect() as sender:
            sender.sendall(b"word\t3\r\n")
        assert receiver.wait() == 1
        assert "broke off" in receiver.err
    assert not out.exists()


def test_rubbish_fails_the_totals(tmp_path: Path) -> None:
    with Program("wordcount/receiver.py", "--port", "0", "--out", str(tmp_path / "out")) as receiver:
        with receiver.connect() as sender:
            sender.sendall(b"word three\r\n")
            assert receiver.wait() == 1
        assert "sent b'word three'" in receiver.err


def test_a_file_that_is_not_there_ends_the_hasher_and_fails_the_totals(tmp_path: Path) -> None:
    text, out = tmp_path / "text", tmp_path / "out"
    written(text, 1, 10_000)
    with Program("wordcount/receiver.py", "--port", "0", "--out", str(out)) as receiver:
        arguments = (str(text), str(tmp_path / "absent"), "--to", f"127.0.0.1:{receiver.port}")
        with Program("wordcount/hasher.py", *arguments) as hasher:
            assert hasher.wait() == 1
        assert "No such file" in hasher.err
        assert "absent" in hasher.err
        assert "Traceback" not in hasher.err
        assert receiver.wait() == 1
    assert not out.exists()


def test_a_hasher_that_is_interrupted_before_all_is_taken_says_so(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"one two three")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with Program("wordcount/hasher.py", str(text), "--to", f"127.0.0.1:{listener.getsockname()[1]}") as hasher:
            peer, _ = listener.accept()
            with peer:
                assert receive_all(peer).endswith(b"\\end\r\n")  # it has sent everything, and its FIN
                assert hasher.end() == 1
    assert hasher.err == "interrupted"


def test_totals_that_can_t_be_written_fail_before_anybody_sends(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(b"of the last time")
    for out, code in ((tmp_path, 2), (tmp_path / "absent" / "out", 2), (kept, 1)):
        with Program("wordcount/receiver.py", "--port", "0", "--out", str(out)) as receiver:
            if code == 1:
                assert receiver.port
                receiver.process.terminate()
            assert receiver.wait() == code
            assert "Traceback" not in receiver.err
    assert kept.read_bytes() == b"of the last time"


def test_a_hasher_that_finds_no_receiver_says_so(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"one two")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with Program("wordcount/hasher.py", str(text), "--to", f"127.0.0.1:{taken.getsockname()[1]}") as hasher:
            assert hasher.wait() == 1
    assert "refused" in hasher.err
