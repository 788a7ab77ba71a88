"""Each client library against a server: text, streamed text, a tool call, an object by a schema.

A client is a program of programs/. The clients that the tests of the server use run in the
environment of the tests. The others run in environments of their own, because libraries require
versions of others that exclude one another: `make clients` installs them in build/clients and runs
these tests; without them, they are skipped.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import servers

from yocobit.serving import ServerSettings

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "programs"
ENVIRONMENTS = ROOT / "build" / "clients"
FEATURES = ("text", "stream", "tools", "json")
CONVERSATION = [{"role": "user", "content": "Tell me about the sea."}]


@dataclasses.dataclass(frozen=True)
class Client:
    """A client library and its program."""

    name: str  # as in the documentation
    program: str
    environment: str | None = "python"  # in build/clients; None: that of the tests
    features: tuple[str, ...] = FEATURES
    sends_seed: bool = True  # so that its text is known


CLIENTS = (
    Client("OpenAI, chat completions", "openai_chat.py", None),
    Client("OpenAI, responses", "openai_responses.py", None, sends_seed=False),
    Client("Groq", "groq_chat.py", None),
    Client("Anthropic", "anthropic_messages.py", None, sends_seed=False),
    Client("Ollama", "ollama_chat.py", None, features=("text", "stream", "json")),
    Client("LiteLLM, openai/", "litellm_openai.py"),
    Client("LiteLLM, groq/", "litellm_groq.py"),
    Client("LangChain, ChatOpenAI", "langchain_openai_chat.py"),
    Client("LangChain, ChatGroq", "langchain_groq_chat.py", "langchain-groq", sends_seed=False),
    Client("LlamaIndex, OpenAILike", "llama_index_openai_like.py", "llama-index", sends_seed=False),
    Client("Pydantic AI", "pydantic_ai_agent.py"),
    Client("OpenAI Agents SDK", "openai_agents.py", sends_seed=False),
    Client("Instructor", "instructor_openai.py", features=("tools", "json")),
    Client("smolagents", "smolagents_openai.py"),
    Client("Outlines", "outlines_openai.py", features=("text", "stream", "json")),
    Client("llm", "llm_command.py", features=("text", "stream", "json")),
    Client("OpenAI for Node.js", "openai_node.mjs", "node"),
    Client("AI SDK, openai", "ai_sdk.mjs", "node", sends_seed=False),
    Client("AI SDK, openai-compatible", "ai_sdk_compatible.mjs", "node", sends_seed=False),
)


@pytest.fixture(scope="module")
def server():
    with servers.running(ServerSettings(threads=1)) as running:
        yield running


@pytest.fixture(scope="module")
def answer(server) -> str:
    """The server's text for what the programs send."""
    body = {"messages": CONVERSATION, "seed": 1, "max_tokens": 24}
    choice = server.post("/v1/chat/completions", **body).json()["choices"][0]
    return choice["message"]["content"]


@pytest.fixture(scope="module")
def results(server):
    """The results of a client's program by feature; each program runs once."""
    return functools.cache(lambda client: run(client, server.url))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("client", "feature"),
    [
        pytest.param(client, feature, id=f"{client.program.partition('.')[0]}-{feature}")
        for client in CLIENTS
        for feature in client.features
    ],
)
def test_client_works_with_the_server(client, feature, results, answer):
    found = results(client)[feature]
    assert "error" not in found, found["error"]
    result = found["result"]
    if feature == "text":
        assert result.strip() == answer.strip() if client.sends_seed else result.strip()
    elif feature == "stream":
        assert sum(map(bool, result)) > 5
        assert "".join(result).replace(" ", "") == answer.replace(" ", "") or not client.sends_seed
    else:
        arguments = result if feature == "json" else result[1]
        assert feature == "json" or result[0] == "show_clock"
        assert arguments["zone"] in ("UTC", "CET")
        assert isinstance(arguments["is_24_hours"], bool)


def test_documentation_lists_the_clients():
    page = (ROOT / "docs" / "reference" / "clients.md").read_text()
    for client in CLIENTS:
        marks = ["yes" if feature in client.features else "" for feature in FEATURES]
        assert f"| {' | '.join([client.name, *marks])} |" in page, client.name


def run(client: Client, url: str) -> dict[str, dict[str, Any]]:
    """Run a client's program; the test is skipped without the client's environment."""
    directory = ENVIRONMENTS / str(client.environment)
    if client.environment is None:
        command = [sys.executable, "-B", str(PROGRAMS / client.program)]
    elif client.environment == "node":
        node = shutil.which("node")
        if node is None or not (directory / "node_modules").is_dir():
            pytest.skip("needs Node.js and `make clients`")
        # Node.js searches for modules in the directories above the program.
        shutil.copytree(PROGRAMS, directory / "programs", dirs_exist_ok=True)
        command = [node, str(directory / "programs" / client.program)]
    else:
        python = directory / "bin" / "python"
        if not python.exists():
            pytest.skip("needs `make clients`")
        command = [str(python), "-B", str(PROGRAMS / client.program)]
    done = subprocess.run(
        [*command, url],
        env={**os.environ, "OPENAI_API_KEY": "none", "DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
