"""Servers and clients of each SDK."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import groq
import openai
import pytest
import servers
from sdk_clients import KEYS, connect

from yocobit.serving import ServerSettings


@pytest.fixture(scope="module", params=[openai, groq], ids=["openai", "groq"])
def sdk(request) -> ModuleType:
    return request.param


@pytest.fixture(scope="module")
def server():
    with servers.running(ServerSettings(threads=1, alias=("gpt-4o",))) as running:
        yield running


@pytest.fixture(scope="module")
def guarded():
    """A server with API keys and a short context."""
    settings = ServerSettings(threads=1, api_keys=KEYS, context=128)
    with servers.running(settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(sdk, server):
    with connect(sdk, server.url) as client:
        yield client


@pytest.fixture(scope="module")
def openai_client(server):
    with connect(openai, server.url) as client:
        yield client


@pytest.fixture(scope="module")
def groq_client(server):
    with connect(groq, server.url) as client:
        yield client


@pytest.fixture(scope="module")
def endless(engine) -> dict[str, Any]:
    """Options that make the model repeat one token for seconds."""
    return {"max_completion_tokens": 8000, "logit_bias": {str(engine.encode(" sea")[-1]): 100}}
