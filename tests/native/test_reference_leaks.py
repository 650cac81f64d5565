"""The search for references that are left behind finds one, and does not cry wolf."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import ctypes
import pytest

made = []

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made.append("once")
    return tmp_path_factory.mktemp("folder")

def test_that_takes_one_reference_too_many():
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(None))

def test_that_leaves_nothing():
    [object() for _ in range(1000)]

def test_that_shares_what_is_made_once_for_the_module(folder):
    assert made == ["once"]
"""


@pytest.mark.skipif(not hasattr(sys, "gettotalrefcount"), reason="only a debug build counts references")
def test_one_reference_left_behind_is_found(tmp_path):
    path = tmp_path / "test_references.py"
    path.write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "reference_leaks", str(path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "1 failed, 2 passed" in done.stdout
    assert "leaves references behind, run by run: [1, 1, 1, 1]" in done.stdout
