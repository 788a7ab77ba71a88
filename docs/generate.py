"""Reference pages generated from the code, a hook of mkdocs: CLI, configuration, HTTP, metrics.

The pages are not checked in. They are generated from public names and the source of the
configuration classes, where a comment after a field is its meaning.

    python docs/generate.py DIRECTORY      # the same pages as files
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import shlex
import subprocess
import sys
import textwrap
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import typer.main
from http_page import http_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from starlette.testclient import TestClient
from table_cells import cell, number

from yocobit.cli import app
from yocobit.config import ModelConfig, preset
from yocobit.data.config import DataConfig, SourceConfig
from yocobit.mixers import MIXERS
from yocobit.packing.formats import FORMATS
from yocobit.serving import ServerSettings, create_app, limits
from yocobit.serving.api.refused_fields import REFUSED
from yocobit.training.config import (
    DistillConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
)

# The dataclass of each section of a configuration file; an item of data.train is a table.
SECTIONS = {
    "model": ModelConfig,
    "data": DataConfig,
    "data.train": SourceConfig,
    "optim": OptimConfig,
    "schedule": ScheduleConfig,
    "run": RunConfig,
    "distill": DistillConfig,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, markdown in pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=markdown))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Insert generated tables, and the output of the commands in marked console blocks."""
    for name, table in TABLES.items():
        if f"{{{{ {name} }}}}" in markdown:
            markdown = markdown.replace(f"{{{{ {name} }}}}", "\n".join(table()))
    return re.sub(r"<!-- output -->\n```console\n\$ (.*)\n```", _with_output, markdown)


def _with_output(match: re.Match[str]) -> str:
    command = match[1]
    program = [sys.executable, "-m", *shlex.split(command)]
    output = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    return f"```console\n$ {command}\n{output.rstrip()}\n```"


def pages() -> dict[str, str]:
    """Return the generated pages of reference/ by name."""
    application = create_app(ServerSettings())
    with TestClient(application, base_url="http://127.0.0.1") as client:
        openapi = client.get("/openapi.json").json()
        while client.get("/health").status_code == 503:
            pass  # the packaged model opens in milliseconds
        metrics = client.get("/metrics").text
    return {
        "cli": cli_page(),
        "configuration": configuration_page(),
        "http": http_page(openapi),
        "metrics": metrics_page(metrics),
    }


# --- tables inside pages that are written by hand


def weight_format_table() -> Iterator[str]:
    yield "| format | bits | values of codes 0, 1, ... | columns of a block | scale | activations |"
    yield "|---|---|---|---|---|---|"
    for name, format in FORMATS.items():
        values = _values(format.values)
        blocks = str(format.block_columns) if format.block_columns > 1 else "none, [M][K]"
        scale = _scale(format.scale)
        activations = format.activations.name
        yield f"| `{name}` | {format.bits} | {values} | {blocks} | {scale} | {activations} |"


def _values(values: Sequence[int]) -> str:
    if not values:
        return "floats"
    words = [f"{value:+d}" if value else "0" for value in values]
    return ", ".join(words) if len(words) < 5 else f"{words[0]} to {words[-1]}"


def _scale(scale: Any) -> str:
    if scale is None:
        return "none"
    kind = {"PerTensor": "per tensor", "PerRow": "per row"}.get(type(scale).__name__)
    return f"{scale.dtype}, {kind or f'per row and {scale.columns} columns'}"


def mixer_table() -> Iterator[str]:
    caches = {
        "per_token": "grows with the context, per layer",
        "ring": "ring buffer of the last `window` positions",
        "shared": "the shared K/V, one for all cross layers",
        "none": "none",
    }
    yield "| mixer | decoder | KV cache | recurrent state | matrices |"
    yield "|---|---|---|---|---|"
    config = preset("tiny")
    for name, mixer in MIXERS.items():
        state = "H × D × D, float32" if mixer.state_shape else "none"
        matrices = [f"`{p}`" for p, it in mixer.parameters(config).items() if it.role != "norm"]
        yield (
            f"| `{name}` | {mixer.decoder} | {caches[mixer.kv_cache]} | {state} "
            f"| {', '.join(matrices)} |"
        )


def serving_limit_table() -> Iterator[str]:
    yield "| limit | value | status |"
    yield "|---|---|---|"
    for what, value, status in limits.TABLE:
        yield f"| {what} | {value:,} | {status} |"


def refused_field_table() -> Iterator[str]:
    yield "| field | accepted values | instead |"
    yield "|---|---|---|"
    for name, refused in REFUSED.items():
        accepted = ", ".join(f"`{json.dumps(value)}`" for value in refused.accepted) or "none"
        yield f"| `{name}` | {accepted} | {refused.remedy} |"


TABLES = {
    "weight formats": weight_format_table,
    "mixers": mixer_table,
    "serving limits": serving_limit_table,
    "refused fields": refused_field_table,
}


# --- the command line


def cli_page() -> str:
    command = typer.main.get_command(app)
    lines = ["# Command line", "", str(command.help), ""]
    lines += [
        "Invalid input causes a one-line error on standard error and exit code 2, Ctrl-C exit code",
        "130. Options in *italics* can be repeated. – means that an option is off or unset.",
        "TOKENS is a number such as 8192, 128k or 2M (powers of 1024).",
        "",
        "`yocobit --install-completion` lets the shell complete commands, options and the names of",
        "models; `yocobit --show-completion` prints the script instead. Terminals show colours,",
        "unless `NO_COLOR` is set, and progress bars.",
        "",
    ]
    context = command.make_context("yocobit", [], resilient_parsing=True)
    for name in command.list_commands(context):
        lines += _command(name, command.get_command(context, name))
    return "\n".join(lines)


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    words = [_metavar(a) if a.required else f"[{_metavar(a)}]" for a in arguments]
    yield from (f"## {name}", "", str(command.help).strip(), "")
    yield from ("```text", " ".join(["yocobit", name, *words, "[OPTIONS]"]), "```", "")
    if arguments:
        yield from ("| argument | meaning |", "|---|---|")
        yield from (f"| `{_metavar(a)}` | {cell(a.help or '')} |" for a in arguments)
        yield ""
    kinds = get_type_hints(command.callback)
    yield from ("| option | value | default | meaning |", "|---|---|---|---|")
    for option in options:
        names = ", ".join(f"`{opt}`" for opt in sorted(option.opts, key=len))
        names = f"*{names}*" if option.multiple else names
        variable = f" Environment: `{option.envvar}`." if option.envvar else ""
        yield (
            f"| {names} | {_value(option, kinds.get(option.name))} | {_default(option)} "
            f"| {cell((option.help or '') + variable)} |"
        )
    yield from ("", "```sh", *command.epilog.splitlines(), "```", "")


def _metavar(argument: Any) -> str:
    return argument.metavar + ("..." if argument.nargs == -1 else "")


def _value(option: Any, kind: Any) -> str:
    if option.is_flag:
        return ""
    if option.metavar:
        return f"`{option.metavar}`"
    if option.multiple:
        (kind,) = kind.__args__
    bounds = [
        f"{sign} {number(bound)}"
        for sign, bound in (("≥", option.min), ("≤", option.max))
        if bound is not None
    ]
    return " ".join([_type(kind), *bounds])


def _default(option: Any) -> str:
    if isinstance(option.show_default, str):
        return option.show_default
    if option.required:
        return "**required**"
    default = option.default
    if option.is_flag or default is None or callable(default) or default in ([], ()):
        return "–"
    values = default if isinstance(default, list | tuple) else [default]
    return ", ".join(f"`{value}`" for value in values)


# --- configuration files

_BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "multiple_of": "multiple of"}


def configuration_page() -> str:
    lines = [
        "# Configuration",
        "",
        "`yocobit train` reads a TOML file with the sections below; `--set section.key=value`",
        "changes a key on the command line. Unknown keys are refused. A key without a default must",
        "be given, unless the meaning says what replaces it. The files in `configs/` are complete",
        "examples.",
        "",
    ]
    for section, cls in SECTIONS.items():
        title = "`[[data.train]]`" if section == "data.train" else f"`[{section}]`"
        lines += [f"## {title} {{#{section.replace('.', '-')}}}", "", *_fields(cls), ""]
    lines += [
        "## Server settings {#server}",
        "",
        "`yocobit.serving.ServerSettings`, for programs that embed the server. `create_app()`",
        "reads the same names from the environment, in upper case with the prefix `YOCOBIT_`",
        "(`YOCOBIT_MODEL`); a list is separated by commas. `yocobit serve` has an",
        "[option](cli.md#serve) for each, and reads the variables where an option is not given.",
        "",
        *_fields(ServerSettings),
    ]
    return "\n".join(lines)


def _fields(cls: type) -> Iterator[str]:
    doc = inspect.getdoc(cls) or ""
    yield from (re.sub(r"^\[[\w.]+\]: (.)", lambda match: match[1].upper(), doc), "")
    yield from ("| key | type | default | meaning |", "|---|---|---|---|")
    types = get_type_hints(cls, include_extras=True)
    for name, default, meaning in fields_of(cls):
        yield f"| `{name}` | {_type(types[name])} | {default} | {cell(meaning)} |"


def fields_of(cls: type) -> Iterator[tuple[str, str, str]]:
    """Yield name, default and meaning (the comment after it, or the lines above) of each field."""
    source = textwrap.dedent(inspect.getsource(cls))
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    lines = source.splitlines()
    (body,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    for node in body.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        meaning = [comments.get(node.end_lineno or node.lineno, "")]
        above = node.lineno - 1
        while not meaning[0] and lines[above - 1].strip().startswith("#"):
            meaning.insert(1, comments[above])
            above -= 1
        default = "**required**" if node.value is None else _literal(node.value)
        text = " ".join(meaning).strip().rstrip(".")
        yield node.target.id, default, text[:1].upper() + text[1:]


def _literal(node: ast.expr) -> str:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        text = ast.unparse(node)
        return "none" if text.startswith("dataclasses.field") else f"`{text}`"
    if value is None or value == ():
        return "none"
    return f"`{json.dumps(value)}`"


def _type(kind: Any) -> str:
    if metadata := getattr(kind, "__metadata__", ()):  # of Annotated
        rules = [
            f"{sign} {number(getattr(meta, key))}"
            for meta in metadata
            for key, sign in _BOUNDS.items()
            if getattr(meta, key, None) is not None
        ]
        return " ".join([_type(kind.__origin__), *rules])
    words = {int: "integer", float: "number", bool: "true or false", str: "text", Path: "path"}
    if kind in words:
        return words[kind]
    arguments = getattr(kind, "__args__", ())
    if getattr(kind, "__origin__", None) is tuple:
        return f"list of {_type(arguments[0])}"
    if arguments and all(isinstance(argument, str) for argument in arguments):
        return cell(" \\| ".join(f"`{argument}`" for argument in arguments))
    if arguments:
        return " or ".join(_type(a) for a in arguments if a is not type(None))
    return "table"


# --- metrics


def metrics_page(text: str) -> str:
    lines = [
        "# Metrics",
        "",
        "`GET /metrics` of a server, in Prometheus' text format. Names follow vLLM's, with the",
        "prefix `yocobit:`.",
        "",
        "| metric | type | meaning |",
        "|---|---|---|",
    ]
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    for name, kind in kinds.items():
        if name.startswith("yocobit:") and not name.endswith("_created"):
            lines.append(f"| `{name}` | {kind} | {cell(helps[name])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for page, content in pages().items():
        (Path(sys.argv[1]) / f"{page}.md").write_text(content, encoding="utf-8")
