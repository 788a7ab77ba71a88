"""Fixtures of training tests: no fsync, and runs that several tests compare with."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from training_runs import run, signal_at, write_toml

from yocobit.training import loop


@pytest.fixture(scope="module", autouse=True)
def no_fsync():
    """No test simulates a power failure, and fsync is a quarter of the time of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def straight(tmp_path_factory) -> Path:
    """The run of training_runs.TOML, never interrupted."""
    directory = tmp_path_factory.mktemp("straight")
    run(write_toml(directory), directory / "run")
    return directory / "run"


@pytest.fixture(scope="session")
def stopped_once(tmp_path_factory) -> Path:
    """A run of training_runs.TOML that SIGTERM stopped after step 4; not to be changed."""
    directory = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "rate_factor", signal_at(4, signal.SIGTERM))
        run(write_toml(directory), directory / "run")
    return directory / "run"


@pytest.fixture
def stopped(stopped_once, tmp_path) -> Path:
    """A copy of `stopped_once`."""
    return shutil.copytree(stopped_once, tmp_path / "run")
