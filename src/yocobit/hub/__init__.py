"""Models by name: from the Hugging Face Hub or a file, converted once and cached.

A name is "tiny", the directory of a packed model, a GGUF file, a Hugging Face directory, or
ORG/NAME[@REVISION][:FILE] or a URL on the hub.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from yocobit.errors import ConfigError
from yocobit.hub.cache import Entry, ModelCache, Options, SourceFile, folder_of
from yocobit.hub.choice import TEXT_FILES
from yocobit.hub.download import Download, download
from yocobit.hub.kind import is_published, missing, not_packed, not_trained
from yocobit.hub.name import HubName, parse_name
from yocobit.packing.file_format import CONFIG
from yocobit.packing.tensor_source import tensor_files
from yocobit.packing.writer import Progress
from yocobit.pretrained import TINY

__all__ = [
    "TINY_NAME",
    "Entry",
    "HubName",
    "ModelCache",
    "Options",
    "missing",
    "not_packed",
    "not_trained",
    "parse_name",
    "pull",
    "resolve",
    "source",
]

TINY_NAME = TINY.name  # of the packaged model, unless a path has it


def _silent(line: str) -> None:
    pass


def resolve(
    model: str | Path,
    say: Callable[[str], None] = _silent,
    progress: Progress | None = None,
) -> Path:
    """Return the directory of a packed model; convert its source if the cache lacks it.

    A file of a published checkpoint selects its directory, and a directory the only GGUF file in
    it. Other paths are returned unchanged. A model on the hub is downloaded once; `pull` looks for
    a newer revision. The options of the last `pull` apply. `say` receives status lines, `progress`
    the number of converted bytes.
    """
    name = parse_name(model)
    cache = ModelCache()
    if isinstance(name, HubName):
        entry = cache.find(str(name))
        if entry is not None:
            return cache.path(entry)
        return pull(model, cache.options(str(name)), say, progress)
    if str(name) == TINY_NAME and not name.exists():
        return TINY
    name = _source_of(name)
    if not is_published(name):
        return name
    path = name.resolve()
    entry = cache.find(str(path))
    if entry is not None and _is_unchanged(path, entry):
        return cache.path(entry)
    return _convert_path(cache, path, cache.options(str(path)), say, progress)


def pull(
    model: str | Path,
    options: Options | None = None,
    say: Callable[[str], None] = _silent,
    progress: Progress | None = None,
) -> Path:
    """Download and convert a model; return the directory of the packed model.

    Files that have not changed are neither downloaded nor converted again. ConfigError for a path
    that is not a published checkpoint.
    """
    name = parse_name(model)
    cache = ModelCache()
    options = options or Options()
    if isinstance(name, HubName):
        found = _download(name, say)
        folder, gguf = folder_of(found.path), found.choice.gguf
        return cache.add(
            str(name),
            found.path,
            tuple(
                SourceFile.of(folder, found.path.name if file == gguf else file, digest)
                for file, digest in found.hashes.items()
            ),
            options,
            revision=found.revision,
            choice=found.choice.reason,
            say=say,
            progress=progress,
        )
    name = _source_of(name)
    if str(name) == TINY_NAME and not name.exists():
        raise ConfigError(f"{name}: is part of the package; run it with: yocobit chat {name}")
    if not is_published(name):
        raise ConfigError(
            f"{model}: must be a GGUF file, a Hugging Face directory, or ORG/NAME of a model on "
            "the hub, which is converted to a packed model"
        )
    return _convert_path(cache, name.resolve(), options, say, progress)


def source(model: str | Path, say: Callable[[str], None] = _silent) -> Path:
    """Return the path of a published checkpoint; download it if it is on the hub."""
    name = parse_name(model)
    if not isinstance(name, HubName):
        return name
    return _download(name, say).path


def _download(name: HubName, say: Callable[[str], None]) -> Download:
    files = download(name)
    say(f"{name}: {files.choice.reason}, revision {files.revision[:12]}")
    return files


def _convert_path(
    cache: ModelCache,
    path: Path,
    options: Options,
    say: Callable[[str], None],
    progress: Progress | None,
) -> Path:
    files = tuple(SourceFile.of(folder_of(path), name) for name in _names(path))
    return cache.add(str(path), path, files, options, say=say, progress=progress)


def _source_of(path: Path) -> Path:
    """Return the directory of a tensor file, or the only GGUF file of a directory."""
    if path.suffix == ".safetensors" and path.is_file() and (path.parent / CONFIG).is_file():
        return path.parent
    if path.is_dir() and not (path / CONFIG).exists():
        ggufs = list(path.glob("*.gguf"))
        return ggufs[0] if len(ggufs) == 1 else path
    return path


def _names(path: Path) -> list[str]:
    """Return the names of the files that an import of `path` reads."""
    if path.is_file():
        return [path.name]
    weights = [file.name for file in tensor_files(path)]
    return [name for name in TEXT_FILES if (path / name).is_file()] + weights


def _is_unchanged(path: Path, entry: Entry) -> bool:
    if [each.name for each in entry.files] != _names(path):
        return False
    return all(each.is_unchanged(folder_of(path)) for each in entry.files)
