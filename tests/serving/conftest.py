"""A server and an engine of the packaged model.

Fixtures import yocobit: this file is read before the option --native is.
"""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest):
    """A server with one thread and the SETTINGS of the test file, if it has any."""
    import servers

    from yocobit.serving import ServerSettings

    settings = ServerSettings(threads=1, **getattr(request.module, "SETTINGS", {}))
    with servers.running(settings) as running:
        yield running


@pytest.fixture(scope="session")
def engine():
    from yocobit import Engine

    return Engine.load(threads=1)
