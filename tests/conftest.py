"""Options and fixtures that every test file may use."""

import signal
import sys
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Take Ctrl-C even where the shell ignores it for a job in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        metavar="DIR",
        type=Path,
        default=Path(__file__).parent / "golden",
        help="directory of golden vectors (default: the subset in tests/golden)",
    )


def pytest_collection_finish() -> None:
    # The tests' tensors are small: on busy cores, torch's threads only wait for each other.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def golden_directory(pytestconfig: pytest.Config) -> Path:
    return pytestconfig.getoption("golden")
