"""Sums of fractions to the last digit as Redis computes them: in the 80-bit floats of its processor.

Python's have 64 bits, and would answer 0.30000000000000004 where Redis answers 0.3.
"""

from __future__ import annotations

import re
from fractions import Fraction

from redis_replies import CommandError

_MAX_EXPONENT = 4000  # the processor's go to 4932; Python reads and writes no integers of more than 4300 digits
_MANTISSA_BITS = 64
_DIGITS = 17
_NUMBER = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]([+-]?[0-9]{1,5}))?")
_INFINITY = re.compile(rb"[+-]?inf(?:inity)?", re.IGNORECASE)


def fraction_of(text: bytes, complaint: str = "ERR value is not a valid float") -> Fraction | None:
    """Return the number that *text* says, None if that is infinite.

    Raises:
        CommandError: it is none, or too large or small for one, with *complaint* as the message.
    """
    if _INFINITY.fullmatch(text):
        return None
    found = _NUMBER.fullmatch(text) if len(text) <= _MAX_EXPONENT else None
    if found is None or abs(int(found[1] or 0)) > _MAX_EXPONENT:
        raise CommandError(complaint)
    number = Fraction(text.decode())
    if abs(number) >= 10**_MAX_EXPONENT:
        raise CommandError(complaint)
    return _rounded(number)


def text_of_sum(one: Fraction | None, other: Fraction | None) -> bytes:
    """Return the sum of two numbers in decimal.

    Raises:
        CommandError: it is infinite.
    """
    if one is None or other is None:
        raise CommandError("ERR increment would produce NaN or Infinity")
    return _text_of(_rounded(one + other))


def _rounded(number: Fraction) -> Fraction:
    """Return the nearest number of as many bits as the processor's floats have."""
    if number == 0:
        return number
    shift = _MANTISSA_BITS - (abs(number.numerator).bit_length() - number.denominator.bit_length())
    mantissa = round(number * Fraction(2) ** shift)
    excess = max(abs(mantissa).bit_length() - _MANTISSA_BITS, 0)
    if excess:  # the estimate was one bit too long
        mantissa = round(number * Fraction(2) ** (shift - excess)) << excess
    return mantissa / Fraction(2) ** shift


def _text_of(number: Fraction) -> bytes:
    """Return a number in decimal, without zeros at the end."""
    scaled = round(abs(number) * 10**_DIGITS)
    whole, part = divmod(scaled, 10**_DIGITS)
    digits = f"{whole}.{part:0{_DIGITS}}".rstrip("0").rstrip(".")
    return (f"-{digits}" if number < 0 else digits).encode()
