"""serve: a model as an endpoint for OpenAI's and Groq's clients."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import Annotated

import typer

from yocobit.cli.options import Attention, Cache, Kernels, Threads, Verify
from yocobit.config import ConfigError
from yocobit.errors import UserError
from yocobit.pretrained import TINY

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
        typer.Argument(
            metavar="MODEL", help="A packed model's directory.", show_default="the packaged one"
        ),
    ] = TINY,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8080,
    alias: Annotated[
        list[str], typer.Option(help="A further name for the model; can be repeated.")
    ] = [],  # noqa: B006
    api_key: Annotated[
        list[str],
        typer.Option(help="Ask for this key; can be repeated.", envvar="YOCOBIT_API_KEY"),
    ] = [],  # noqa: B006
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Ask for one of the keys in a file's lines.",
            envvar="YOCOBIT_API_KEY_FILE",
        ),
    ] = None,
    no_api_key: Annotated[
        bool, typer.Option("--no-api-key", help="Let others in without a key, too.")
    ] = False,
    cors_origin: Annotated[
        list[str],
        typer.Option(help="A site whose pages may ask, such as https://a.b; can be repeated."),
    ] = [],  # noqa: B006
    trusted_host: Annotated[
        list[str],
        typer.Option(help="A name that requests may call this server by; can be repeated."),
    ] = [],  # noqa: B006
    context: Annotated[
        int, typer.Option(help="Tokens of a prompt and its answer at most.", min=1)
    ] = 8192,
    cache: Cache = "f32",
    attention: Attention = None,
    cache_mb: Annotated[
        int, typer.Option(help="Memory for the caches of requests at work.", min=1)
    ] = 2048,
    max_sequences: Annotated[
        int, typer.Option(help="Texts at work at a time.", min=1, max=1024)
    ] = 64,
    max_waiting: Annotated[int, typer.Option(help="Requests that may wait.", min=0)] = 256,
    timeout: Annotated[float, typer.Option(help="Seconds for a request.", min=0.001)] = 600.0,
    drain: Annotated[
        float, typer.Option(help="Seconds for what is at work at SIGTERM.", min=0)
    ] = 30.0,
    prefix_mb: Annotated[
        int, typer.Option(help="Memory for prompts that were seen before; 0: none.", min=0)
    ] = 512,
    prefix_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep those on disk, too.")
    ] = None,
    prefix_dir_mb: Annotated[int, typer.Option(help="Disk for those.", min=1)] = 4096,
    threads: Threads = None,
    kernels: Kernels = None,
    verify: Verify = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log lines of JSON, to standard error.")
    ] = False,
) -> None:
    """Serve a model to OpenAI's and Groq's clients, with a page to chat at."""
    try:
        from yocobit import serving
        from yocobit.serving.settings import read_keys
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("yocobit"):
            raise
        raise UserError("serving needs more packages: pip install 'yocobit[serve]'") from None
    keys = (*api_key, *(read_keys(api_key_file) if api_key_file else ()))
    is_local = _is_loopback(host)
    if not is_local and not keys and not no_api_key:
        raise UserError(
            f"--host {host} can be reached by others; give --api-key or --api-key-file, or let "
            "everybody in by --no-api-key"
        )
    if keys and no_api_key:
        raise UserError(
            "--no-api-key lets everybody in, but keys are given (--api-key, --api-key-file, or "
            "YOCOBIT_API_KEY and YOCOBIT_API_KEY_FILE); leave one of the two out"
        )
    # Without names, a web page could have its own name mean this machine, and ask.
    names = (*trusted_host, *_LOOPBACK) if is_local or trusted_host else ()
    if is_local:
        names = (*names, host)
    try:
        settings = serving.ServerSettings(
            model=model,
            alias=tuple(alias),
            threads=threads,
            kernels=kernels,
            verify=verify,
            cache=cache,
            attention=attention,
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
            trusted_hosts=names,
            log_json=log_json,
        )
    except ConfigError as error:
        raise UserError(_with_options(str(error))) from None
    serving.serve(settings, host, port, drain_s=drain, ready=_say_ready)


def _with_options(problem: str) -> str:
    """Return what is wrong with settings, with the names of options for those of fields."""
    for field, option in _OPTIONS.items():
        problem = problem.replace(field, option)
    return problem


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _say_ready(url: str) -> None:
    if sys.stderr.isatty():
        print(f"chat at {url}/, or point a client at {url}/v1; Ctrl-C ends", file=sys.stderr)
    else:
        print(f"serving at {url}", file=sys.stderr, flush=True)
