"""Timestamp: microseconds in an integer, and what can be done with them."""

from __future__ import annotations

import datetime
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymuduo import COMPILED, Timestamp

# Years 1 to 9999: what a datetime can hold.
_MICROSECONDS = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)


def test_the_timestamp_that_was_never_set_is_zero_false_and_invalid() -> None:
    never = Timestamp()
    assert never.us == 0
    assert not never
    assert not never.is_valid


def test_a_set_timestamp_is_true_and_valid() -> None:
    assert Timestamp(1)
    assert Timestamp(1).is_valid


def test_now_is_the_wall_clock() -> None:
    before = time.time_ns() // 1000
    now = Timestamp.now()
    after = time.time_ns() // 1000
    assert before <= now.us <= after


def test_from_seconds_keeps_microseconds() -> None:
    assert Timestamp.from_seconds(1.000001) == Timestamp(1_000_001)
    assert Timestamp.from_seconds(0) == Timestamp()
    assert Timestamp.from_seconds(1_700_000_000.123456).us == 1_700_000_000_123_456


def test_seconds_is_what_time_time_would_give() -> None:
    assert Timestamp(1_700_000_000_250_000).seconds == 1_700_000_000.25


def test_adding_seconds_gives_a_later_moment_and_negative_ones_an_earlier() -> None:
    moment = Timestamp(5_000_000)
    assert moment + 1.5 == Timestamp(6_500_000)
    assert moment + -1.5 == Timestamp(3_500_000)
    assert moment + 2 == Timestamp(7_000_000)
    assert moment.us == 5_000_000


def test_a_microsecond_added_is_not_lost() -> None:
    now = Timestamp(1_700_000_000_123_456)
    assert now + 0.000001 == Timestamp(1_700_000_000_123_457)


def test_the_difference_of_two_is_seconds() -> None:
    assert Timestamp(3_500_000) - Timestamp(1_000_000) == 2.5
    assert Timestamp(1_000_000) - Timestamp(3_500_000) == -2.5
    assert isinstance(Timestamp(2) - Timestamp(1), float)


@pytest.mark.parametrize("wrong", ["1", None, [1], datetime.timedelta(seconds=1)])
def test_adding_or_subtracting_what_is_no_number_raises_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError):
        Timestamp(1) + wrong
    with pytest.raises(TypeError):
        Timestamp(1) - wrong


def test_two_timestamps_can_not_be_added() -> None:
    with pytest.raises(TypeError):
        Timestamp(1) + Timestamp(2)  # type: ignore[operator]


checked_by_the_compiler = pytest.mark.skipif(not COMPILED, reason="plain Python checks no attribute's type or owner")


@checked_by_the_compiler
@pytest.mark.parametrize("wrong", ["2024-01-01", None, [1]])
def test_made_of_what_is_no_integer_raises_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError):
        Timestamp(wrong)


@checked_by_the_compiler
def test_a_timestamp_can_not_be_changed() -> None:
    moment = Timestamp(1)
    with pytest.raises(AttributeError):
        moment.us = 2
    assert moment.us == 1


def test_timestamps_compare_by_time() -> None:
    early, late = Timestamp(1), Timestamp(2)
    assert early < late
    assert early <= late
    assert late > early
    assert late >= early
    assert early != late
    assert early == Timestamp(1)
    assert early <= Timestamp(1)
    assert early >= Timestamp(1)
    assert not early < Timestamp(1)
    assert not early > Timestamp(1)
    assert not early != Timestamp(1)  # noqa: SIM202 (this is about __ne__)


def test_timestamps_sort() -> None:
    moments = [Timestamp(3), Timestamp(-1), Timestamp(2)]
    assert sorted(moments) == [Timestamp(-1), Timestamp(2), Timestamp(3)]


def test_a_timestamp_equals_no_number() -> None:
    assert Timestamp(1) != 1
    assert Timestamp(1) != "1"
    assert not Timestamp(1) == 1  # noqa: SIM201 (this is about __eq__)


@pytest.mark.parametrize("wrong", [1, 1.0, "1", None])
def test_ordering_against_anything_else_raises_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError):
        Timestamp(1) < wrong  # noqa: B015
    with pytest.raises(TypeError):
        Timestamp(1) <= wrong  # noqa: B015
    with pytest.raises(TypeError):
        Timestamp(1) > wrong  # noqa: B015
    with pytest.raises(TypeError):
        Timestamp(1) >= wrong  # noqa: B015


def test_equal_timestamps_hash_alike() -> None:
    assert len({Timestamp(7), Timestamp(7), Timestamp(8)}) == 2
    assert hash(Timestamp(7)) == hash(Timestamp(7))


def test_to_datetime_is_aware_and_in_utc() -> None:
    moment = Timestamp(1_700_000_000_123_456).to_datetime()
    assert moment == datetime.datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=datetime.UTC)
    assert moment.utcoffset() == datetime.timedelta(0)


@given(_MICROSECONDS)
def test_datetime_round_trip_is_exact(us: int) -> None:
    assert Timestamp.from_datetime(Timestamp(us).to_datetime()) == Timestamp(us)


def test_from_datetime_honours_the_time_zone() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
    moment = datetime.datetime(1970, 1, 1, 5, 30, 0, 1, tzinfo=zone)
    assert Timestamp.from_datetime(moment) == Timestamp(1)


def test_from_datetime_takes_a_naive_one_as_local_time() -> None:
    naive = datetime.datetime(2024, 6, 1, 12, 0, 0, 5)
    assert Timestamp.from_datetime(naive).us == round(naive.replace(microsecond=0).timestamp()) * 1_000_000 + 5


def test_str_is_utc_with_microseconds() -> None:
    assert str(Timestamp(1_700_000_000_000_007)) == "2023-11-14 22:13:20.000007"


def test_repr_makes_the_same_timestamp() -> None:
    moment = Timestamp(1_700_000_000_000_007)
    assert eval(repr(moment)) == moment


@given(_MICROSECONDS, _MICROSECONDS)
def test_order_is_the_order_of_the_microseconds(a: int, b: int) -> None:
    assert (Timestamp(a) < Timestamp(b)) == (a < b)
    assert (Timestamp(a) <= Timestamp(b)) == (a <= b)
    assert (Timestamp(a) == Timestamp(b)) == (a == b)
