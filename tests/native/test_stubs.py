"""src/yocobit/_native.pyi is what nanobind.stubgen makes of the module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_committed_stub_equals_the_generated_one(tmp_path):
    generated = tmp_path / "_native.pyi"

    subprocess.run(
        [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "yocobit._native", "-o", generated],
        check=True,
    )

    committed = ROOT / "src/yocobit/_native.pyi"
    assert generated.read_text() == committed.read_text(), "run make stubs"
