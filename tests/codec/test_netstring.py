"""NetstringCodec: exactly what the definition of netstrings allows. Splits and limits: ``test_codec.py``."""

from __future__ import annotations

import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pymuduo import Buffer
from pymuduo.codec import NetstringCodec, ProtocolError

LIMIT = 120


def test_the_examples_of_the_definition():
    codec = NetstringCodec()
    assert codec.encode(b"hello world!") == b"12:hello world!,"
    assert codec.encode(b"") == b"0:,"
    assert codec.decode(Buffer(b"12:hello world!,0:,5:a,b:c,3:")) == [b"hello world!", b"", b"a,b:c"]


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"x", "does not begin with its length"),
        (b":", "does not begin with its length"),
        (b",", "does not begin with its length"),
        (b"-", "does not begin with its length"),
        (b"+", "does not begin with its length"),
        (b" ", "does not begin with its length"),
        (b"1 ", "does not begin with its length"),
        (b"1,", "does not begin with its length"),
        (b"\xb2", "does not begin with its length"),  # a digit in Latin-1
        (b"00", "does not begin with its length"),
        (b"01", "does not begin with its length"),
        (b"0:x", "without a comma"),
        (b"3:abcd", "without a comma"),
        (b"3:abc\n", "without a comma"),
        (b"121", "more than 120 bytes"),
        (b"130", "more than 120 bytes"),
        (b"1000", "more than 120 bytes"),
        (b"999", "more than 120 bytes"),
    ],
)
def test_what_is_no_netstring_is_refused_with_the_byte_that_shows_it(stream, why):
    codec = NetstringCodec(max_bytes=LIMIT)
    for good in (b"", b"2:ok,"):
        buffer, messages = Buffer(), []
        for byte in good + stream[:-1]:
            buffer.append(bytes([byte]))
            messages += codec.decode(buffer)
        assert messages == [b"ok"] * (good != b"")
        buffer.append(stream[-1:])
        with pytest.raises(ProtocolError, match=why):
            codec.decode(buffer)


def test_a_length_may_reach_the_limit_and_no_more():
    codec = NetstringCodec(max_bytes=LIMIT)
    assert codec.decode(Buffer(codec.encode(bytes(LIMIT)))) == [bytes(LIMIT)]
    assert codec.decode(Buffer(b"120:" + bytes(LIMIT))) == []
    with pytest.raises(ValueError, match="at most 120 bytes, got 121"):
        codec.encode(bytes(LIMIT + 1))
    with pytest.raises(ValueError, match="at most 120 bytes, got 121"):
        codec.encode_all([b"", bytes(LIMIT + 1)])


@pytest.mark.parametrize("limit", [sys.maxsize, 1 << 70])
def test_a_limit_beyond_what_can_be_counted_is_lowered(limit):
    codec = NetstringCodec(max_bytes=limit)
    assert codec.decode(Buffer(b"%d:" % codec.max_bytes)) == []
    for more in (codec.max_bytes + 1, 10 * codec.max_bytes, 10**30):
        with pytest.raises(ProtocolError, match=f"more than {codec.max_bytes} bytes"):
            codec.decode(Buffer(b"%d:" % more))


@given(st.binary(max_size=40) | st.text("0123456789:,a", max_size=12).map(str.encode))
@example(b"1:a,2:bb,03:ccc,")
def test_it_decodes_what_a_model_written_from_the_definition_decodes(stream):
    """The model looks at the whole stream with Python's own means, and knows nothing of cuts."""
    expected, rest, is_broken = [], stream, False
    while rest:
        digits, colon, behind = rest.partition(b":")
        is_number = digits.isdigit() and digits == str(int(digits)).encode()
        if is_number and int(digits) > LIMIT:
            is_broken = True
        elif not colon:
            is_broken = not is_number
        elif not is_number:
            is_broken = True
        elif len(behind) > int(digits):
            if behind[int(digits)] == ord(","):
                expected.append(behind[: int(digits)])
                rest = behind[int(digits) + 1 :]
                continue
            is_broken = True
        break
    codec = NetstringCodec(max_bytes=LIMIT)
    buffer = Buffer(stream)
    if expected or not is_broken:
        assert codec.decode(buffer) == expected
        assert bytes(buffer) == rest
    if is_broken:
        with pytest.raises(ProtocolError):
            codec.decode(buffer)
