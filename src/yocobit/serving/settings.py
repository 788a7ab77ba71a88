"""What a server is started with."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yocobit.config import ConfigError, parse_attention
from yocobit.engine.session import CacheType
from yocobit.pretrained import TINY
from yocobit.settings import Settings

_PREFIX = "YOCOBIT_"
# Kubernetes sets such variables for a service that is called yocobit, or yocobit-something.
_OF_A_SERVICE = re.compile(rf"{_PREFIX}(.*_)?(PORT|SERVICE_HOST|SERVICE_PORT)(_.*)?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+")  # as browsers write it
MB = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerSettings(Settings):
    """A model, and limits. Sizes are in bytes, times in seconds."""

    model: Path = TINY
    alias: tuple[str, ...] = ()  # further names that requests may give the model
    threads: int | None = None  # one per CPU unless given
    kernels: str | None = None
    verify: bool = False  # check every weight before use
    cache: CacheType = "f32"
    attention: str | None = None  # as the model says unless given

    context: int = 8192  # tokens of a prompt and its answer
    max_sequences: int = 64  # texts at work at a time
    max_waiting: int = 256  # requests that wait for a place
    timeout_s: float = 600.0  # for a request, in the queue and at work
    cache_mb: int = 2048  # for the caches of the texts at work
    prefix_mb: int = 512  # for prefixes that were seen before; 0: none are kept
    prefix_dir: Path | None = None  # keep them on disk, too
    prefix_dir_mb: int = 4096
    max_body_mb: int = 16  # of a request

    # One of them is asked for; none: everybody may. They do not belong into logs.
    api_keys: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()  # web pages that may ask, besides our own
    trusted_hosts: tuple[str, ...] = ()  # names that requests may call this server by; none: any
    log_json: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threads is not None:
            self.require(1 <= self.threads <= 1024, "threads", "must be between 1 and 1024")
        self.require(1 <= self.context <= 1 << 30, "context", "must be between 1 and 2^30")
        self.require(1 <= self.max_sequences <= 1024, "max_sequences", "must be in 1..1024")
        self.require(self.max_waiting >= 0, "max_waiting", "must be at least 0")
        self.require(0 < self.timeout_s <= 86400, "timeout_s", "must be above 0, at most a day")
        for name in ("cache_mb", "prefix_dir_mb", "max_body_mb"):
            self.require(getattr(self, name) >= 1, name, "must be at least 1")
        self.require(self.prefix_mb >= 0, "prefix_mb", "must be at least 0")
        if self.attention is not None:
            parse_attention(self.attention)
        if self.prefix_dir is not None and self.prefix_mb == 0:
            raise ConfigError("prefix_dir has no use if prefix_mb is 0; leave one of the two out")
        if any(len(key) < 8 or not key.isprintable() for key in self.api_keys):
            raise ConfigError("api_keys must each have at least 8 printable characters")
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"cors_origins must be such as https://a.b, without a path, but has {origin!r}"
                )

    @property
    def cache_bytes(self) -> int:
        return self.cache_mb * MB

    @property
    def max_body_bytes(self) -> int:
        return self.max_body_mb * MB

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ServerSettings:
        """Return settings of variables such as YOCOBIT_MODEL; lists are separated by commas.

        Keys are those of YOCOBIT_API_KEY, as `serve` has it, of YOCOBIT_API_KEYS, and of the file
        YOCOBIT_API_KEY_FILE together. ConfigError for a variable that means nothing.
        """
        names = {_PREFIX + field.name.upper(): field for field in dataclasses.fields(cls)}
        fields: dict[str, Any] = {}
        keys: list[str] = []
        for variable, value in environment.items():
            if variable == f"{_PREFIX}API_KEY":
                keys += value.split()
            elif variable == f"{_PREFIX}API_KEY_FILE":
                keys += read_keys(Path(value)) if value else ()
            elif (field := names.get(variable)) is not None:
                fields[field.name] = _parse(field.name, str(field.type), value)
            elif variable.startswith(_PREFIX) and not _OF_A_SERVICE.fullmatch(variable):
                raise ConfigError(f"{variable} is not a setting; there are {', '.join(names)}")
        fields["api_keys"] = (*fields.get("api_keys", ()), *keys)
        return cls(**fields)


def read_keys(path: Path) -> tuple[str, ...]:
    """Return the keys in a file, one a line; lines that begin with # are comments."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"{path}: holds no key; write one a line")
    return keys


def _parse(name: str, kind: str, value: str) -> object:
    try:
        if kind.startswith("tuple"):
            return tuple(item.strip() for item in value.split(",") if item.strip())
        if kind.startswith("int"):
            return int(value)
        if kind.startswith("float"):
            return float(value)
        if kind == "bool":
            return {"0": False, "1": True, "false": False, "true": True}[value.lower()]
        return Path(value) if kind.startswith("Path") else value
    except (ValueError, KeyError):
        raise ConfigError(f"{_PREFIX}{name.upper()}: must be {kind} but is {value!r}") from None
