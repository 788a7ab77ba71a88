"""ServerSettings: the model and the limits of a server."""

from __future__ import annotations

import bisect
import dataclasses
import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yocobit.config import ConfigError, ModelConfig, parse_attention
from yocobit.costs import session_bytes
from yocobit.engine.session import DEFAULT_CACHE, CacheType
from yocobit.pretrained import TINY
from yocobit.reading import MAX_BYTES, decode, read_text
from yocobit.settings import Settings

_DESCRIPTORS = ("/dev/fd/", "/proc/self/fd/")  # pipes of the shell, <(...): open already
_PREFIX = "YOCOBIT_"
# Kubernetes sets these variables for a service named yocobit or yocobit-something.
_KUBERNETES = re.compile(rf"{_PREFIX}(.*_)?(PORT|SERVICE_HOST|SERVICE_PORT)(_.*)?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+")  # as browsers write it
MB = 1 << 20
DEFAULT_CONTEXT = 8192  # of a model whose training context is unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerSettings(Settings):
    """The model and limits of a server."""

    model: Path = TINY  # a packed model's directory
    alias: tuple[str, ...] = ()  # additional model names for requests
    threads: int | None = None  # None: one per CPU
    kernels: str | None = None  # kernel family; None: the fastest of this CPU
    verify: bool = False  # check every weight before use
    cache: CacheType = DEFAULT_CACHE  # of the KV caches
    attention: str | None = None  # None: the model's own
    exact: bool = False  # int16 instead of int8 activations, as in Engine.load

    # Tokens of a prompt and its response; -1: as the model was trained, if cache_mb holds them.
    context: int = -1
    max_sequences: int = 64  # in flight at a time
    max_waiting: int = 256  # queued requests
    timeout_s: float = 600.0  # of a request, queueing included
    cache_mb: int = 2048  # KV cache memory of the sequences in flight
    prefix_mb: int = 512  # prefix cache memory; 0: no prefix cache
    prefix_dir: Path | None = None  # prefix cache on disk
    prefix_dir_mb: int = 4096  # size limit of the prefix cache on disk
    max_body_mb: int = 16  # of a request

    # A request must have one of these keys; empty: none. Not in repr, so that no log has them.
    api_keys: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()  # web origins that may send requests
    trusted_hosts: tuple[str, ...] = ()  # allowed Host headers; empty: any
    # Proxies whose X-Forwarded-For names the client: addresses, networks, or *.
    forwarded_allow_ips: tuple[str, ...] = ()
    root_path: str = ""  # path under which a proxy serves the root
    log_json: bool = False  # log lines as JSON

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threads is not None:
            self.require(1 <= self.threads <= 1024, "threads", "must be between 1 and 1024")
        if self.context != -1:
            self.require(1 <= self.context <= 1 << 30, "context", "must be between 1 and 2^30")
        self.require(1 <= self.max_sequences <= 1024, "max_sequences", "must be between 1 and 1024")
        self.require(self.max_waiting >= 0, "max_waiting", "must be at least 0")
        self.require(0 < self.timeout_s <= 86400, "timeout_s", "must be above 0, at most a day")
        for name in ("cache_mb", "prefix_dir_mb", "max_body_mb"):
            self.require(getattr(self, name) >= 1, name, "must be at least 1")
        self.require(self.prefix_mb >= 0, "prefix_mb", "must be at least 0")
        if self.attention is not None:
            parse_attention(self.attention)
        if self.prefix_dir is not None and self.prefix_mb == 0:
            raise ConfigError(
                "prefix_dir has no effect if prefix_mb is 0; leave one of the two out"
            )
        if any(len(key) < 8 or not key.isprintable() for key in self.api_keys):
            raise ConfigError("api_keys must each have at least 8 printable characters")
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    "cors_origins must have the form https://a.b, without a path, but has "
                    f"{origin!r}"
                )
        for proxy in self.forwarded_allow_ips:
            try:
                _ = proxy == "*" or ipaddress.ip_network(proxy)
            except ValueError:
                raise ConfigError(
                    "forwarded_allow_ips must be addresses or networks such as 10.0.0.0/8, or *, "
                    f"but has {proxy!r}"
                ) from None
        is_path = re.fullmatch(r"(/[^/?#\s]+)*", self.root_path) is not None
        rule = "must be a path such as /llm, without a slash at its end,"
        self.require(is_path, "root_path", rule)

    def of_model(self, config: ModelConfig) -> ServerSettings:
        """Return the settings with the context of a model, unless they have one."""
        if self.context != -1:
            return self
        wanted = config.trained_context or DEFAULT_CONTEXT

        def size(n_tokens: int) -> int:
            return session_bytes(config, self.cache, n_tokens)

        n_fitting = bisect.bisect_right(range(1, wanted + 1), self.cache_bytes, key=size)
        return dataclasses.replace(self, context=max(1, n_fitting))

    def without_keys(self) -> ServerSettings:
        """Return the settings without the API keys."""
        return dataclasses.replace(self, api_keys=())

    @property
    def cache_bytes(self) -> int:
        return self.cache_mb * MB

    @property
    def max_body_bytes(self) -> int:
        return self.max_body_mb * MB

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ServerSettings:
        """Return the settings in variables such as YOCOBIT_MODEL; lists are comma-separated.

        API keys are those of `keys_in` and of the file YOCOBIT_API_KEY_FILE. ConfigError for an
        unknown or invalid variable.
        """
        names = {_PREFIX + field.name.upper(): field for field in dataclasses.fields(cls)}
        if unknown := unknown_variable(environment):
            raise ConfigError(unknown)
        fields: dict[str, Any] = {
            names[variable].name: _parse(names[variable], value)
            for variable, value in environment.items()
            if variable in names
        }
        file = environment.get(f"{_PREFIX}API_KEY_FILE")
        keys = (*keys_in(environment), *(read_keys(Path(file)) if file else ()))
        return cls(**{**fields, "api_keys": tuple(dict.fromkeys(keys))})


def unknown_variable(environment: Mapping[str, str]) -> str | None:
    """Return the error of a YOCOBIT_ variable that is not a setting; None without one."""
    names = [_PREFIX + field.name.upper() for field in dataclasses.fields(ServerSettings)]
    names += [f"{_PREFIX}API_KEY", f"{_PREFIX}API_KEY_FILE"]
    for variable in environment:
        is_ours = variable.startswith(_PREFIX) and not _KUBERNETES.fullmatch(variable)
        if is_ours and variable not in names:
            return f"{variable} is not a setting; valid are {', '.join(names)}"
    return None


def keys_in(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the API keys in YOCOBIT_API_KEY, separated by spaces, and YOCOBIT_API_KEYS, by commas.

    The option --api-key replaces both variables.
    """
    spaced = environment.get(f"{_PREFIX}API_KEY", "").split()
    return (*spaced, *_items(environment.get(f"{_PREFIX}API_KEYS", "")))


def read_keys(path: Path) -> tuple[str, ...]:
    """Return the API keys in a file, one per line; lines that start with # are comments."""
    try:
        if str(path).startswith(_DESCRIPTORS):
            with path.open("rb") as stream:
                text = decode(stream.read(MAX_BYTES), path)
        else:
            text = read_text(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    lines = [line.strip() for line in text.splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"{path}: contains no key; write one per line")
    return keys


def _items(value: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in value.split(",") if item.strip())


def _parse(field: dataclasses.Field[Any], value: str) -> object:
    name, kind = field.name, str(field.type)
    try:
        if kind.startswith("tuple"):
            return _items(value)
        if kind.startswith("int"):
            return int(value)
        if kind.startswith("float"):
            return float(value)
        if kind == "bool":
            return {"0": False, "1": True, "false": False, "true": True}[value.lower()]
        return Path(value) if kind.startswith("Path") else value
    except (ValueError, KeyError):
        raise ConfigError(f"{_PREFIX}{name.upper()}: must be {kind} but is {value!r}") from None
