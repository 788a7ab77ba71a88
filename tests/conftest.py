"""Options and fixtures that every test file may use."""

import importlib.util
import signal
import sys
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Take Ctrl-C even where the shell ignores it for a job in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if native := config.getoption("native"):
        if "yocobit._native" in sys.modules:  # a conftest.py in a folder must import it in fixtures
            raise pytest.UsageError("--native comes too late: yocobit is imported already")
        spec = importlib.util.spec_from_file_location("yocobit._native", native)
        sys.modules["yocobit._native"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        metavar="DIR",
        type=Path,
        default=Path(__file__).parent / "golden",
        help="directory of golden vectors (default: the subset in tests/golden)",
    )
    parser.addoption(
        "--native",
        metavar="FILE",
        type=Path,
        help="a build of the native module to test in place of the installed one",
    )


def pytest_collection_finish() -> None:
    # The tests' tensors are small: on busy cores, torch's threads only wait for each other.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def golden_directory(pytestconfig: pytest.Config) -> Path:
    return pytestconfig.getoption("golden")


@pytest.fixture
def toml(tmp_path) -> Path:
    from training_runs import write_toml

    return write_toml(tmp_path)


@pytest.fixture(scope="session")
def engine_of(tmp_path_factory):
    from packed_models import engines

    return engines(tmp_path_factory.mktemp)
