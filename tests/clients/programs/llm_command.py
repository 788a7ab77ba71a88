"""The command `llm`, with the server as one of its OpenAI-compatible models."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from feature import MODEL, N_TOKENS, PROMPT, Clock, run

MODELS = """- model_id: {model}
  model_name: {model}
  api_base: "{url}/v1"
  supports_schema: true
"""


def prompt(url: str, *options: str) -> str:
    with tempfile.TemporaryDirectory() as directory:
        models = Path(directory, "extra-openai-models.yaml")
        models.write_text(MODELS.format(model=MODEL, url=url))
        return subprocess.run(
            [Path(sys.executable).parent / "llm", "-m", MODEL, *options, PROMPT],
            env={**os.environ, "LLM_USER_PATH": directory, "OPENAI_API_KEY": "none"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout


def text(url: str) -> Any:
    return prompt(url, "--no-stream", "-o", "max_tokens", str(N_TOKENS), "-o", "seed", "1")


def stream(url: str) -> Any:
    return prompt(url, "-o", "max_tokens", str(N_TOKENS), "-o", "seed", "1").split()


def parsed(url: str) -> Any:
    return json.loads(prompt(url, "--schema", json.dumps(Clock.model_json_schema())))


run(text=text, stream=stream, json=parsed)
