"""Options and fixtures that every test file may use."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        metavar="DIR",
        type=Path,
        default=Path(__file__).parent / "golden",
        help="directory of golden vectors (default: the subset in tests/golden)",
    )


@pytest.fixture(scope="session")
def golden_directory(pytestconfig: pytest.Config) -> Path:
    return pytestconfig.getoption("golden")
