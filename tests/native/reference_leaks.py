"""Looks for references that a test leaves behind: a pytest plugin, for a debug build of Python, which counts them all.

Every test is run several times over, except for those that hypothesis makes, which do something else each time. What is
made once and kept (caches, imports, the first use of anything) is made in the first runs; a test fails if each of the
later ones leaves more references than there were before it. That finds what no count of objects does: a reference that
compiled code takes to ``None``, to a small number, to a type or a constant and never gives back.

    make refleaks PYTHON=python3.11-dbg
"""

from __future__ import annotations

import gc
import itertools
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from _pytest.nodes import Node
from _pytest.runner import runtestprotocol

_WARM_UPS = 4
_COUNTED = 4


def references() -> int:
    """Return the number of references that there are, when all that can go has gone."""
    re.purge()  # patterns with a port in them are never the same
    for _ in range(3):  # what finalizers let go may be a cycle again
        gc.collect()
    return int(sys.gettotalrefcount())


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to look with an interpreter that counts nothing."""
    if not hasattr(sys, "gettotalrefcount"):
        raise pytest.UsageError("references are counted by a debug build of Python alone, as python3.11-dbg is")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is never the same twice."""
    random = [item for item in items if getattr(getattr(item, "obj", None), "is_hypothesis_test", False)]
    config.hook.pytest_deselected(items=random)
    items[:] = [item for item in items if item not in random]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Return a folder of which pytest remembers nothing."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


class _Sibling:
    """Stands for a test that comes next and shares all fixtures with this one but those of the test itself."""

    def __init__(self, item: pytest.Item) -> None:
        self._chain = item.listchain()[:-1]

    def listchain(self) -> list[Node]:
        return self._chain


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Function, nextitem: pytest.Item | None) -> bool:
    """Run a test several times, and judge what is left each time."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    sibling = cast("pytest.Item", _Sibling(item))  # of which nothing else is asked
    counts = [0] * (_COUNTED + 1)
    for i in range(_WARM_UPS + _COUNTED):
        item._initrequest()
        item._report_sections.clear()  # what was logged, run by run
        reports = runtestprotocol(item, log=False, nextitem=sibling)  # a module's fixtures stay, run by run
        if not all(report.passed for report in reports):
            break
        if i >= _WARM_UPS - 1:
            counts[i - _WARM_UPS + 1] = references()
    else:
        left = [after - before for before, after in itertools.pairwise(counts)]
        if min(left) > 0:
            reports[1].outcome = "failed"
            reports[1].longrepr = f"leaves references behind, run by run: {left}"
    item.session._setupstate.teardown_exact(nextitem)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
