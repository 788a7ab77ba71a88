"""The reference page of the HTTP API: endpoints, objects and errors of the server's OpenAPI."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from table_cells import cell, number


def http_page(openapi: dict[str, Any]) -> str:
    schemas = openapi["components"]["schemas"]
    lines = [
        "# HTTP API",
        "",
        "The endpoints of `yocobit serve`, as `/openapi.json` of a running server describes them.",
        "Paths below `/v1` are also served below `/openai/v1`, where Groq's client looks for them.",
        "An API key is sent as `Authorization: Bearer KEY` or `x-api-key: KEY`. Errors have",
        'OpenAI\'s shape: `{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}`;',
        "those of Anthropic's and Ollama's endpoints have the shape of their APIs.",
        "[Serve](../getting-started/serve.md) shows clients,",
        "[production serving](../how-to/production.md) the limits.",
        "",
        "Fields have the meaning of OpenAI's API; [Request fields](requests.md) lists additions,",
        "differences and defaults. `top_k`, `min_p`, `repetition_penalty`, `add_special_tokens`",
        "and the tokenizer's endpoints are vLLM's. Default *none*: the field is optional.",
        "",
        "| method and path | purpose |",
        "|---|---|",
    ]
    operations = [
        (method.upper(), path, operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
        if method != "parameters"
    ]
    lines += [f"| `{method} {path}` | {op['summary']} |" for method, path, op in operations]
    used: list[str] = []
    for method, path, operation in operations:
        if parameters := operation.get("parameters"):
            fields = {each["name"]: each["schema"] for each in parameters}
            query = {"description": "The query string.", "properties": fields}
            lines += ["", f"## {method} {path}", "", operation["summary"], "", *_schema(query)]
        if "requestBody" not in operation:
            continue
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        name = schema["$ref"].rsplit("/", 1)[1]
        lines += ["", f"## {method} {path}", "", operation["summary"], "", *_schema(schemas[name])]
        used.append(name)
    nested = [name for name in schemas if name not in used and "properties" in schemas[name]]
    lines += ["", "## Objects"]
    for name in nested:
        lines += ["", f"### {name}", "", *_schema(schemas[name])]
    errors = {
        status: response["description"]
        for _, _, operation in operations
        for status, response in operation["responses"].items()
        if status >= "400"
    }
    lines += ["", "## Errors", "", "| status | meaning |", "|---|---|"]
    lines += [f"| {status} | {errors[status]} |" for status in sorted(errors)]
    return "\n".join(lines) + "\n"


def _schema(schema: dict[str, Any]) -> Iterator[str]:
    if text := schema.get("description"):
        yield from (text, "")
    yield from ("| field | type | default |", "|---|---|---|")
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        default = f"`{json.dumps(field['default'])}`" if "default" in field else "none"
        default = "**required**" if name in required else default
        default = "none" if default == "`null`" else default
        kind = _json_type(field)
        yield f"| `{name}` | {kind} | {default} |"


def _json_type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        kinds = [_json_type(kind) for kind in field["anyOf"] if kind.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "enum" in field:
        return cell(" \\| ".join(f"`{json.dumps(value)}`" for value in field["enum"]))
    kind = field.get("type", "any")
    if kind == "array" and field.get("items"):
        return f"list of {_json_type(field['items'])}"
    if isinstance(kind, list):
        return " or ".join(k for k in kind if k != "null")
    bounds = [
        f"{sign} {number(field[key])}"
        for sign, key in (
            ("≥", "minimum"),
            (">", "exclusiveMinimum"),
            ("≤", "maximum"),
            ("<", "exclusiveMaximum"),
        )
        if key in field and abs(field[key]) < 1 << 53
    ]
    return " ".join([kind, *bounds])
