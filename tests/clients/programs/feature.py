"""What every program of this directory needs: the conversation, a schema, a tool, and `run`.

    python openai_chat.py URL

tries each feature of a client with the server at URL, and prints one JSON object: by feature, the
result or the traceback. Results are a text; the pieces of a streamed text; a tool call as
[name, arguments]; an object that follows the schema.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel

MODEL = "tiny"
PROMPT = "Tell me about the sea."
SEA: Any = [{"role": "user", "content": PROMPT}]
N_TOKENS = 24


class Clock(BaseModel):
    """A schema with short values; also the arguments of the tool."""

    zone: Literal["UTC", "CET"]
    is_24_hours: bool


TOOL = "show_clock"
DESCRIPTION = "Show a clock."


def run(**features: Callable[[str], Any]) -> None:
    """Try each feature with the server that the command line names, and print the results."""
    found: dict[str, dict[str, Any]] = {}
    for name, feature in features.items():
        try:
            result = feature(sys.argv[1])
            if isinstance(result, BaseModel):
                result = result.model_dump()
            found[name] = {"result": result}
        except Exception:
            found[name] = {"error": traceback.format_exc()}
    print(json.dumps(found))
