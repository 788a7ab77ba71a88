"""Downloads from the Hugging Face Hub, through huggingface_hub and its cache.

HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE have their usual meaning. An interrupted download
resumes. Files stay in the cache of huggingface_hub.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yocobit.disk import sha256
from yocobit.errors import UserError
from yocobit.extras import needs_extra
from yocobit.hub.choice import Choice, choose
from yocobit.hub.kind import similar_model
from yocobit.hub.name import HubName
from yocobit.importers import GGUF_START_BYTES, check_config, check_gguf_start
from yocobit.packing.file_format import CONFIG
from yocobit.reading import read_json


@dataclass(frozen=True)
class Download:
    """The files of one model in the cache of huggingface_hub."""

    path: Path  # the GGUF file, or the directory
    revision: str  # the commit
    hashes: dict[str, str]  # of each file by its name
    choice: Choice


def download(name: HubName) -> Download:
    """Download the most exact files of a model, unless they are in the cache.

    UserError if the hub cannot be reached and the files are not in the cache, and for a missing or
    gated model, a missing file, a damaged download and a full disk. ConfigError for a model that
    is not supported, as far as its config.json or the first bytes of its GGUF file tell, before
    the download of its weights.
    """
    hub = _import_hub()
    with _reporting(name):
        try:
            revision, expected = _files_on_hub(hub, name)
            is_offline = False
        except (hub.errors.OfflineModeIsEnabled, *_connection_errors(hub)) as error:
            revision, expected = _files_in_cache(hub, name, error)
            is_offline = True

        def fetch(file: str) -> Path:
            # By the revision in the name, so that the cache records its commit for offline use.
            path = Path(
                hub.hf_hub_download(
                    name.repository, file, revision=name.revision, local_files_only=is_offline
                )
            )
            if path.parents[file.count("/")].name != revision:
                raise UserError(f"{name}: changed on the hub during the download; try again")
            return path

        config = read_json(fetch(CONFIG)) if CONFIG in expected else None
        choice = choose(expected.keys(), config, name.file, str(name))
        if choice.gguf is None and config is not None:
            check_config(config, f"{name.repository}/{CONFIG}")
        elif choice.gguf is not None and not is_offline:
            start = _start_of(hub, name.repository, choice.gguf, revision)
            check_gguf_start(start, f"{name.repository}/{choice.gguf}")
        paths = {file: fetch(file) for file in choice.files}
    hashes = {}
    for file, path in paths.items():
        hashes[file] = sha256(path)
        if expected[file] not in (None, hashes[file]):
            _remove(path)
            raise UserError(
                f"{name}: {file} must have sha256 {expected[file]} but was downloaded with "
                f"{hashes[file]}; the damaged file was deleted: download it again"
            )
    anchor = choice.files[0]
    folder = paths[anchor].parents[anchor.count("/")]
    return Download(paths[choice.gguf] if choice.gguf else folder, revision, hashes, choice)


def _start_of(hub: Any, repository: str, file: str, revision: str) -> bytes:
    """Return the first bytes of a file: those of the cache, or by a request for a range."""
    cached = hub.try_to_load_from_cache(repository, file, revision=revision)
    if isinstance(cached, str):
        with open(cached, "rb") as stream:
            return stream.read(GGUF_START_BYTES)
    url = hub.hf_hub_url(repository, file, revision=revision)
    headers = hub.utils.build_hf_headers() | {"Range": f"bytes=0-{GGUF_START_BYTES - 1}"}
    start = b""
    with hub.utils.get_session().stream("GET", url, headers=headers) as response:
        hub.utils.hf_raise_for_status(response)
        for part in response.iter_bytes():  # of the whole file if the server ignores the range
            start += part
            if len(start) >= GGUF_START_BYTES:
                break
    return start[:GGUF_START_BYTES]


def _import_hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ModuleNotFoundError:
        raise needs_extra("hub", "models on the hub need huggingface_hub") from None
    return huggingface_hub


def _connection_errors(hub: Any) -> tuple[type[Exception], ...]:
    """Return the exceptions of a host that cannot be reached."""
    return (ConnectionError, TimeoutError, *_http_errors(hub))


def _http_errors(hub: Any) -> tuple[type[Exception], ...]:
    session = hub.utils.get_session()
    module = __import__(type(session).__module__.split(".")[0])  # httpx or its successor
    return (module.TransportError,)


def _files_on_hub(hub: Any, name: HubName) -> tuple[str, dict[str, str | None]]:
    """Return the commit, and the SHA-256 of each file, None for small ones."""
    info = hub.HfApi().model_info(name.repository, revision=name.revision, files_metadata=True)
    files = {each.rfilename: each.lfs.sha256 if each.lfs else None for each in info.siblings or ()}
    return info.sha, files


def _files_in_cache(hub: Any, name: HubName, error: Exception) -> tuple[str, dict[str, str | None]]:
    """Return commit and files of a repository in the cache of huggingface_hub."""
    wanted = name.revision or "main"
    try:
        repositories = hub.scan_cache_dir().repos
    except hub.errors.CacheNotFound:
        repositories = ()
    for repository in repositories:
        if (repository.repo_type, repository.repo_id) != ("model", name.repository):
            continue
        for each in repository.revisions:
            if wanted in each.refs or wanted == each.commit_hash:
                names = [_name_in(each.snapshot_path, file.file_path) for file in each.files]
                return str(each.commit_hash), dict.fromkeys(names)
    is_off = isinstance(error, hub.errors.OfflineModeIsEnabled)
    reason = "HF_HUB_OFFLINE is set" if is_off else f"the hub cannot be reached ({_line(error)})"
    raise UserError(
        f"{name}: is neither an existing path nor in the cache, and {reason}; "
        + (_did_you_mean(name) or "connect to the network, or give the path of a model")
    )


def _did_you_mean(name: HubName) -> str | None:
    """Return a question about a model with a similar name; None if there is none."""
    close = similar_model(Path(str(name)))
    return None if close is None else f"did you mean {close}?"


def _name_in(folder: Path, file: Path) -> str:
    return file.relative_to(folder).as_posix()


def _remove(path: Path) -> None:
    """Delete a file of the cache and the blob that it links to."""
    blob = path.resolve()
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)


@contextmanager
def _reporting(name: HubName) -> Iterator[None]:
    """Turn the errors of huggingface_hub into one line."""
    hub = _import_hub()
    errors = hub.errors
    remedies: list[tuple[type[Exception], Callable[[Exception], str]]] = [
        (
            errors.GatedRepoError,
            lambda _: (
                "is gated; accept its licence on the hub, then set HF_TOKEN to a token of yours"
            ),
        ),
        (
            errors.RevisionNotFoundError,
            lambda _: f"has no revision '{name.revision}'; leave it out for the default branch",
        ),
        (
            errors.RepositoryNotFoundError,
            lambda _: (
                "is neither an existing path nor a model on the hub that you may read; "
                + (_did_you_mean(name) or "check the name, or set HF_TOKEN for a private model")
            ),
        ),
        (errors.DisabledRepoError, lambda _: "is disabled on the hub; choose another model"),
        (errors.EntryNotFoundError, lambda error: f"lacks a file ({_line(error)})"),
        (errors.HFValidationError, lambda error: f"is not a name on the hub ({_line(error)})"),
        (
            errors.HfHubHTTPError,
            lambda error: f"was not downloaded, the hub answered: {_line(error)}; try again",
        ),
        (
            OSError,
            lambda error: (
                f"was not downloaded ({_line(error)}); correct that and try again, the "
                "download resumes"
            ),
        ),
        (
            Exception,
            lambda error: f"was not downloaded ({_line(error)}); try again, the download resumes",
        ),
    ]
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        describe = next(describe for kind, describe in remedies if isinstance(error, kind))
        raise UserError(f"{name}: {describe(error)}") from None


def _line(error: Exception) -> str:
    """Return the first line of a message that is not blank."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0].rstrip(".") if lines else type(error).__name__
    return re.sub(r"^\[Errno -?\d+\] ", "", line)
