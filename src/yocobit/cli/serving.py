"""serve: an OpenAI-compatible server."""

from __future__ import annotations

import ipaddress
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

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
from yocobit.errors import UserError, needs_extra
from yocobit.pretrained import TINY

_MAX_MB = 1 << 24  # 16 TiB
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_OPTIONS = {
    "api_keys": "--api-key",
    "cors_origins": "--cors-origin",
    "prefix_dir": "--prefix-dir",
    "prefix_mb": "--prefix-mb",
    "timeout_s": "--timeout",
}


def serve(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default="the packaged model"),
    ] = TINY,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, number(0, 65535, help="Port; 0 selects a free one.")] = 8080,
    alias: Annotated[list[str], typer.Option(help="Additional model name; can be repeated.")] = [],  # noqa: B006
    api_key: Annotated[
        list[str],
        typer.Option(
            help="API key that requests must have; can be repeated.", envvar="YOCOBIT_API_KEY"
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
        typer.Option(help="Web origin that may send requests, as https://a.b; can be repeated."),
    ] = [],  # noqa: B006
    trusted_host: Annotated[
        list[str],
        typer.Option(help="Host name that requests may use; can be repeated."),
    ] = [],  # noqa: B006
    context: Annotated[
        int, tokens(1, 1 << 30, help="Maximum tokens of a prompt and its response.")
    ] = 8192,
    cache: Cache = DEFAULT_CACHE,
    attention: Attention = None,
    exact: Exact = False,
    cache_mb: Annotated[
        int, number(1, _MAX_MB, help="KV cache memory of in-flight requests, in MiB.")
    ] = 2048,
    max_sequences: Annotated[int, number(1, 1024, help="Maximum sequences in flight.")] = 64,
    max_waiting: Annotated[int, number(0, 1 << 20, help="Maximum queued requests.")] = 256,
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
    threads: Threads = None,
    kernels: Kernels = None,
    verify: Verify = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log to standard error as JSON lines.")
    ] = False,
) -> None:
    """Serve a model over the OpenAI API, with a chat page."""
    try:
        from yocobit import serving
        from yocobit.serving.settings import read_keys
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("yocobit"):
            raise
        raise needs_extra("serve", f"serve needs {error.name}") from None
    if not host:
        raise UserError(
            "--host must be an address or a name but is empty; 0.0.0.0 means all addresses"
        )
    keys = (*api_key, *(read_keys(api_key_file) if api_key_file else ()))
    is_local = _is_loopback(host)
    if not is_local and not keys and not no_api_key:
        raise UserError(
            f"--host {host} is reachable by others; give --api-key or --api-key-file, or allow "
            "everybody with --no-api-key"
        )
    if keys and no_api_key:
        raise UserError(
            "--no-api-key allows everybody, but keys are given (--api-key, --api-key-file, or "
            "YOCOBIT_API_KEY and YOCOBIT_API_KEY_FILE); leave one of the two out"
        )
    # Against DNS rebinding: a web page whose host name resolves to this machine.
    hosts = (*trusted_host, *_LOOPBACK) if is_local or trusted_host else ()
    if is_local:
        hosts = (*hosts, host)
    try:
        settings = serving.ServerSettings(
            model=packed(model),
            alias=(*alias, *([str(model)] if not model.exists() else [])),
            threads=threads,
            kernels=kernels,
            verify=verify,
            cache=cache,
            attention=attention,
            exact=exact,
            context=context,
            cache_mb=cache_mb,
            max_sequences=max_sequences,
            max_waiting=max_waiting,
            timeout_s=timeout,
            prefix_mb=prefix_mb,
            prefix_dir=prefix_dir,
            prefix_dir_mb=prefix_dir_mb,
            api_keys=keys,
            cors_origins=tuple(cors_origin),
            trusted_hosts=hosts,
            log_json=log_json,
        )
    except ConfigError as error:
        raise UserError(_with_options(str(error))) from None
    serving.serve(settings, host, port, drain_s=drain, ready=_report_ready)


def _with_options(problem: str) -> str:
    """Return an error message with option names in place of setting names."""
    for field, option in _OPTIONS.items():
        problem = problem.replace(field, option)
    return problem


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
