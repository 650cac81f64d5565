"""Inputs that were once interesting, and some thousand changes of them, keep every promise.

The search for new ones is ``fuzz.py`` (``make fuzz``); what it finds goes into ``corpus/``. It sees no compiled code:
``PYMUDUO_CHANGES`` in the environment tries more changes on that, as ``make sanitize`` is for.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from fuzz_targets import CORPUS, TARGETS, close, inputs, seeds

CHANGES = int(os.environ.get("PYMUDUO_CHANGES", "800"))
SLOW = ("tls_entry", "proxy_entry", "starttls", "tls_records")  # these need a connection each


@pytest.fixture(autouse=True)
def entrance_is_closed() -> Iterator[None]:
    yield
    close()


def changed(data: bytes, rng: random.Random) -> bytes:
    """Return *data* with a few of the changes that a fuzzer makes."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(result))
        kind = rng.randrange(5)
        if kind == 0 and result:
            result[at % len(result)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            result[at:at] = rng.randbytes(rng.randint(1, 8))
        elif kind == 2:
            del result[at : at + rng.randint(1, 8)]
        elif kind == 3:
            result[at:at] = result[: rng.randint(0, 40)]
        elif result:
            result[at % len(result)] = rng.choice((0, 0xFF, 0x7F, 0x80))
    return bytes(result)


@pytest.mark.parametrize("name", TARGETS)
def test_every_promise_is_kept(name: str) -> None:
    rng = random.Random(name)
    begin = inputs(name)
    for data in begin:
        TARGETS[name](data)
    for _ in range(CHANGES // 13 if name in SLOW else CHANGES):
        TARGETS[name](changed(rng.choice(begin), rng))


def test_every_target_has_seeds_and_every_corpus_a_target() -> None:
    for name in TARGETS:
        assert seeds(name)
    assert {path.stem for path in CORPUS.iterdir()} == set(TARGETS)
