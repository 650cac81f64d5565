"""Some seconds of the soak: everybody is served, and nothing is left; whether memory grows slowly takes its minutes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import imported

SOAK = Path(__file__).with_name("soak.py")


@pytest.mark.timeout(600)
def test_six_seconds_of_churn_are_served_and_leave_nothing():
    imported("trustme")  # for the certificates
    done = subprocess.run(
        [sys.executable, str(SOAK), "--minutes", "0.1"], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"problems": {}' in done.stdout
