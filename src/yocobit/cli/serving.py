"""serve: a server with the APIs of OpenAI, Anthropic and Ollama."""

from __future__ import annotations

import copy
import inspect
import ipaddress
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from yocobit.cli.cache import packed
from yocobit.cli.options import (
    MODEL_HELP,
    Attention,
    Cache,
    Exact,
    Kernels,
    Threads,
    Verify,
    number,
    tokens,
)
from yocobit.config import ConfigError
from yocobit.engine.session import DEFAULT_CACHE
from yocobit.errors import UserError
from yocobit.extras import needs_extra
from yocobit.pretrained import TINY

_MAX_MB = 1 << 24  # 16 TiB
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Settings whose option has another name. Every setting has an option and a variable.
_PARAMETERS = {
    "api_keys": "api_key",
    "cors_origins": "cors_origin",
    "trusted_hosts": "trusted_host",
    "timeout_s": "timeout",
}
_WITHOUT_VARIABLE = ("host", "port", "no_api_key", "drain", "api_key", "api_key_file")


def _with_variables(command: Callable[..., None]) -> Callable[..., None]:
    """Let options of settings read environment variables, such as YOCOBIT_CONTEXT."""
    settings = {parameter: setting for setting, parameter in _PARAMETERS.items()}
    # Not get_type_hints: Python 3.10's wraps the hint of a parameter with the default None.
    hints = inspect.get_annotations(command, eval_str=True)
    for name, hint in hints.items():
        if name in ("return", "ctx", *_WITHOUT_VARIABLE):
            continue
        kind, option = get_args(hint)
        option = copy.copy(option)
        option.envvar = f"YOCOBIT_{settings.get(name, name).upper()}"
        hints[name] = Annotated[kind, option]
    command.__annotations__ = hints
    return command


@_with_variables
def serve(
    ctx: typer.Context,
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default="the packaged model"),
    ] = TINY,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[int, number(0, 65535, help="Port; 0 selects a free one.")] = 8080,
    alias: Annotated[
        list[str],
        typer.Option(metavar="NAMES", help="Additional model names, separated by commas."),
    ] = [],  # noqa: B006
    api_key: Annotated[
        list[str],
        typer.Option(
            metavar="KEY",
            help="API key that requests must have; can be repeated. It replaces the variables "
            "YOCOBIT_API_KEY and YOCOBIT_API_KEYS; keys of --api-key-file are valid, too.",
            envvar="YOCOBIT_API_KEY",
        ),
    ] = [],  # noqa: B006
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of API keys, one per line.",
            envvar="YOCOBIT_API_KEY_FILE",
        ),
    ] = None,
    no_api_key: Annotated[
        bool, typer.Option("--no-api-key", help="Allow remote clients without an API key.")
    ] = False,
    cors_origin: Annotated[
        list[str],
        typer.Option(
            metavar="ORIGINS",
            help="Web origins that may send requests, such as https://a.b, separated by commas.",
        ),
    ] = [],  # noqa: B006
    trusted_host: Annotated[
        list[str],
        typer.Option(
            metavar="HOSTS", help="Host names that requests may use, separated by commas."
        ),
    ] = [],  # noqa: B006
    forwarded_allow_ips: Annotated[
        list[str],
        typer.Option(
            metavar="PROXIES",
            help="Proxies whose X-Forwarded-For names the client: addresses, networks, or *, "
            "separated by commas.",
        ),
    ] = [],  # noqa: B006
    root_path: Annotated[
        str,
        typer.Option(metavar="PATH", help="URL path under which a proxy serves this server."),
    ] = "",
    context: Annotated[
        int | None,
        tokens(
            1,
            1 << 30,
            help="Maximum number of tokens of a prompt and its response; by default the context "
            "of the model's training, as far as the cache memory holds it.",
        ),
    ] = None,
    cache: Cache = DEFAULT_CACHE,
    attention: Attention = None,
    exact: Exact = False,
    cache_mb: Annotated[
        int, number(1, _MAX_MB, help="KV cache memory of in-flight requests, in MiB.")
    ] = 2048,
    max_sequences: Annotated[
        int, number(1, 1024, help="Maximum number of sequences in flight.")
    ] = 64,
    max_waiting: Annotated[
        int, number(0, 1 << 20, help="Maximum number of queued requests.")
    ] = 256,
    timeout: Annotated[
        float, number(0.001, 86400, help="Time limit of a request, in seconds.")
    ] = 600.0,
    drain: Annotated[
        float,
        number(0.0, 86400, help="Time for in-flight requests to complete at SIGTERM, in seconds."),
    ] = 30.0,
    prefix_mb: Annotated[
        int, number(0, _MAX_MB, help="Prefix cache memory, in MiB; 0 disables it.")
    ] = 512,
    prefix_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Directory of a prefix cache on disk.")
    ] = None,
    prefix_dir_mb: Annotated[
        int, number(1, _MAX_MB, help="Size of the prefix cache on disk, in MiB.")
    ] = 4096,
    max_body_mb: Annotated[
        int, number(1, _MAX_MB, help="Size limit of a request's body, in MiB.")
    ] = 16,
    threads: Threads = None,
    kernels: Kernels = None,
    verify: Verify = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log in JSON lines to standard error.")
    ] = False,
) -> None:
    """Serve a model: chat page, APIs of OpenAI, Anthropic and Ollama."""
    try:
        from yocobit import serving
        from yocobit.serving.settings import keys_in, read_keys, unknown_variable
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("yocobit"):
            raise
        raise needs_extra("serve", f"serve needs {error.name}") from None
    if not host:
        raise UserError(
            "--host must be an address or a name but is empty; 0.0.0.0 means all addresses"
        )
    if unknown := unknown_variable(os.environ):
        raise UserError(unknown)
    if not _is_given(ctx, "api_key"):
        api_key = list(keys_in(os.environ))
    keys = tuple(dict.fromkeys((*api_key, *(read_keys(api_key_file) if api_key_file else ()))))
    is_local = _is_loopback(host)
    if not is_local and not keys and not no_api_key:
        raise UserError(
            f"--host {host} is reachable by others; give --api-key or --api-key-file, or allow "
            "everybody with --no-api-key"
        )
    if keys and no_api_key:
        raise UserError(
            "--no-api-key allows everybody, but keys are given (--api-key, --api-key-file, or "
            "YOCOBIT_API_KEY, YOCOBIT_API_KEYS and YOCOBIT_API_KEY_FILE); leave one of the two out"
        )
    # Against DNS rebinding: a web page whose host name resolves to this machine.
    trusted_host = _items(trusted_host)
    hosts = (*trusted_host, *_LOOPBACK) if is_local or trusted_host else ()
    if is_local:
        hosts = (*hosts, host)
    try:
        settings = serving.ServerSettings(
            model=packed(model),
            alias=(*_items(alias), *([str(model)] if not model.exists() else [])),
            threads=threads,
            kernels=kernels,
            verify=verify,
            cache=cache,
            attention=attention,
            exact=exact,
            context=-1 if context is None else context,
            cache_mb=cache_mb,
            max_sequences=max_sequences,
            max_waiting=max_waiting,
            timeout_s=timeout,
            prefix_mb=prefix_mb,
            prefix_dir=prefix_dir,
            prefix_dir_mb=prefix_dir_mb,
            max_body_mb=max_body_mb,
            api_keys=keys,
            cors_origins=tuple(_items(cors_origin)),
            trusted_hosts=hosts,
            forwarded_allow_ips=tuple(_items(forwarded_allow_ips)),
            root_path=root_path,
            log_json=log_json,
        )
    except ConfigError as error:
        raise UserError(_with_options(str(error), ctx)) from None
    serving.serve(settings, host, port, drain_s=drain, ready=_report_ready)


def _items(values: list[str]) -> list[str]:
    """Return the items of lists that are separated by commas."""
    return [item.strip() for value in values for item in value.split(",") if item.strip()]


def _with_options(problem: str, ctx: typer.Context) -> str:
    """Return an error message with options, or the variables they come from, for settings."""
    settings = {parameter: setting for setting, parameter in _PARAMETERS.items()}
    for option in ctx.command.params:
        source: Any = ctx.get_parameter_source(option.name or "")
        is_variable = source is not None and source.name == "ENVIRONMENT"
        name = option.envvar if is_variable else option.opts[-1]
        setting = settings.get(option.name or "", option.name)
        # A name without an underscore may be a word of the sentence, except at its start.
        start = "" if "_" in str(setting) else "^"
        problem = re.sub(rf"{start}\b{setting}\b", str(name), problem)
    return problem


def _is_given(ctx: typer.Context, parameter: str) -> bool:
    """Whether the command line has an option."""
    source: Any = ctx.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _report_ready(url: str) -> None:
    with suppress(OSError):  # a closed pipe or a full disk must not end the server
        print(f"serving at {url}", file=sys.stderr, flush=True)
        if sys.stderr.isatty():
            from yocobit.serving.api.endpoints import listing

            print(*listing(), f"GET  {'/':26} Chat page. Ctrl-C exits.", sep="\n", file=sys.stderr)
