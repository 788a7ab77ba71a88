"""Stream a chat completion from a running `yocobit serve` with OpenAI's client.

pip install openai
yocobit serve &
python examples/stream_openai.py [MESSAGE] [--url http://127.0.0.1:8080/v1]
"""

from __future__ import annotations

import argparse

from openai import APIConnectionError, OpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("message", nargs="?", default="Tell me about the sea.")
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--key", default="none", help="an API key, if the server requires one")
    arguments = parser.parse_args()

    client = OpenAI(base_url=arguments.url, api_key=arguments.key)
    try:
        model = client.models.list().data[0]  # the others are its aliases
    except APIConnectionError:
        parser.exit(2, f"no server at {arguments.url}; start one with: yocobit serve\n")
    stream = client.chat.completions.create(
        model=model.id,
        messages=[{"role": "user", "content": arguments.message}],
        max_tokens=100,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        elif chunk.usage:
            print(f"\n{chunk.usage.completion_tokens} tokens from {model.id}")


if __name__ == "__main__":
    main()
