"""Options and fixtures that every test file may use."""

import gc
import importlib.util
import logging
import os
import signal
import sys
from pathlib import Path

import pytest

# Libraries read these when they are imported, or at their first use.
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the tests' matrices are small: threads would only wait
os.environ["RUST_BACKTRACE"] = "0"  # of a panic that is caught: seconds to look up its symbols


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


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect without garbage collections, and keep later ones off what is here to stay.

    Imported modules and collected tests are a million objects: a second for each collection.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_finish() -> None:
    # The tests' tensors are small: on busy cores, torch's threads only wait for each other.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def settings_of_the_process():
    """Restore what `yocobit serve` sets: the switch interval, and handlers of captured streams."""
    loggers = [logging.getLogger(name) for name in ("yocobit", "uvicorn.error", "uvicorn.access")]
    before = [(each.handlers, each.propagate, each.level) for each in loggers]
    interval = sys.getswitchinterval()
    yield
    if sys.getswitchinterval() != interval:
        sys.setswitchinterval(interval)
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        if logger.handlers is not handlers:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


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
