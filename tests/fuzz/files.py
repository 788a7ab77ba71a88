"""Cases on files: a valid sample with some values exchanged, and a command that reads it.

A case is a function of a random generator, the samples and an empty directory. It writes its files
and returns a call for `sandbox.judge`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutation
import parts

Call = Callable[[], object]


def tokenizer(rng: random.Random, samples: Path, directory: Path) -> Call:
    """Generate, chat or evaluate with an odd tokenizer.json."""
    model = _model(rng, samples, directory)
    path = model / "tokenizer.json"
    fields = json.loads(path.read_bytes())
    if rng.random() < 0.5:
        _graft(fields, rng)
    if rng.random() < 0.7:
        fields = mutation.mutate_json(fields, rng)
    path.write_bytes(mutation.dump(fields, rng))
    return _use(rng, model)


def generation_config(rng: random.Random, samples: Path, directory: Path) -> Call:
    """Generate or chat with an odd generation_config.json."""
    model = _model(rng, samples, directory)
    _mutate_json_file(model / "generation_config.json", rng)
    return _use(rng, model)


def template(rng: random.Random, samples: Path, directory: Path) -> Call:
    """Chat with an odd chat template."""
    model = _model(rng, samples, directory)
    path = model / "chat_template.jinja"
    text = path.read_text()
    if rng.random() < 0.6:  # whole tags and expressions
        tags = re.split(r"(\{%.*?%\}|\{\{.*?\}\})", text)
        for _ in range(rng.choice((1, 1, 2))):
            tags[rng.randrange(len(tags))] = rng.choice((*parts.WHOLE, *tags))
        path.write_text("".join(tags))
        return _command("chat", str(model), "-n", "2", "--threads", "1")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, to = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:at] + rng.choice(parts.PIECES) + text[at:]
        elif kind == 1:
            text = text[:at] + text[min(to, at + 20) :]
        elif kind == 2:
            text = text[:at] + rng.choice(parts.PIECES) + text[min(to, at + 20) :]
        else:
            text = rng.choice(parts.PIECES) * rng.choice((1, 1, 300)) + text[at:]
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return _command("chat", str(model), "-n", "2", "--threads", "1")


def packed_config(rng: random.Random, samples: Path, directory: Path) -> Call:
    """Inspect, verify or use a packed model with an odd config.json or header."""
    model = _model(rng, samples, directory)
    if rng.random() < 0.6:
        _mutate_json_file(model / "config.json", rng)
        if rng.random() < 0.9:
            _hash_again(model)
    else:
        _mutate_header(model / "model.safetensors", rng)
    name = rng.choice(("inspect", "verify", "use"))
    return _use(rng, model) if name == "use" else _command(name, str(model))


def imported(rng: random.Random, samples: Path, directory: Path) -> Call:
    """Import a Hugging Face directory with an odd file, and verify what was imported."""
    source, model = directory / "import", directory / "model"
    kinds = sorted(path.name for path in samples.glob("import*"))
    shutil.copytree(samples / rng.choice(kinds), source)
    if rng.random() < 0.7:
        (source / "model.safetensors.index.json").unlink(missing_ok=True)
    weights, is_truncated = source / "model.safetensors", False
    if rng.random() < 0.3:
        _graft_config(source / "config.json", rng)
    if rng.random() < 0.7:
        names = sorted(path.name for path in source.glob("*.json"))
        for name in rng.sample(names, min(len(names), rng.choice((1, 1, 2)))):
            _mutate_json_file(source / name, rng)
    if rng.random() < 0.3:
        _mutate_header(weights, rng)
    data = bytearray(weights.read_bytes())
    if rng.random() < 0.3:
        for _ in range(rng.choice((1, 10, 1000))):
            data[rng.randrange(len(data))] = rng.choice((0, 0xFF, 0x80, rng.randrange(256)))
        weights.write_bytes(data)
    elif is_truncated := rng.random() < 0.1:
        weights.write_bytes(data[: rng.randrange(len(data))])
    heads = ([], ["--head", "int4"], ["--head", "f16"], ["--head", "f32"])
    options = [*rng.choice(heads), *rng.choice(([], [], ["--weights", "f16"]))]

    def call() -> None:
        from yocobit.cli import run
        from yocobit.errors import report_errors

        def program() -> None:
            run(["import", str(source), str(model), *options])
            assert not is_truncated, "a truncated file was imported"
            run(["verify", str(model)])

        report_errors(program)

    return call


def gguf(rng: random.Random, samples: Path, directory: Path) -> Call:
    """Import a GGUF file with odd bytes, and verify what was imported."""
    from yocobit.importers.gguf.container import GGUFFile

    source = rng.choice(sorted((samples / "gguf").iterdir()))
    start = min(tensor.offset for tensor in GGUFFile(source).tensors.values())
    path, model = directory / "model.gguf", directory / "model"
    path.write_bytes(mutation.mutate_gguf(source.read_bytes(), start, rng))

    def call() -> None:
        from yocobit.cli import run
        from yocobit.errors import report_errors

        def program() -> None:
            run(["import", str(path), str(model)])
            run(["verify", str(model)])

        report_errors(program)

    return call


def damaged_run(rng: random.Random, samples: Path, directory: Path) -> Call:
    """Resume, pack, evaluate or plot a run with damaged files."""
    run = directory / "run"
    shutil.copytree(samples / "run", run)
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.name != "text.txt")
    for path in rng.sample(files, rng.choice((1, 1, 2))):
        if path.suffix == ".json" and rng.random() < 0.8:
            _mutate_json_file(path, rng)
        elif path.suffix == ".jsonl" and rng.random() < 0.8:
            lines = path.read_text().splitlines()
            at = rng.randrange(len(lines))
            odd = mutation.dump(mutation.mutate_json(json.loads(lines[at]), rng), rng)
            lines[at] = odd.decode("utf-8", "replace")
            path.write_text("\n".join(lines) + "\n")
        elif path.suffix == ".safetensors" and rng.random() < 0.5:
            _mutate_header(path, rng)
        else:
            path.write_bytes(mutation.mutate_bytes(path.read_bytes(), rng))
    out, toml = str(run / "out"), str(run / "run.toml")
    return _command(
        *rng.choice(
            (
                ("train", toml, "--out", out, "--resume", "--set", "run.steps=9"),
                ("train", toml, "--out", str(directory / "new"), "--init", out, "--set",
                 "run.steps=1"),
                ("pack", out, str(directory / "model")),
                ("eval", out, str(run / "short.txt"), "--context", "64"),
                ("plot", out, "--out", str(directory / "a.png")),
            )
        )
    )  # fmt: skip


def train_config(rng: random.Random, samples: Path, directory: Path) -> Call:
    """Train with an odd configuration file or override."""
    toml = directory / "run.toml"
    text = (samples / "run" / "run.toml").read_text()
    shutil.copy(samples / "run" / "text.txt", directory)
    values = ["-1", "0", "nan", "inf", "1e400", "true", '""', "[]", "{}", "9" * 5000, "2020-13-45"]
    values += ["[" * 5000, '"\\u0000"', '"/dev/zero"', '["."]', "1.5", '"a\\nb"', "0x" + "f" * 40]
    lines = text.splitlines()
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(lines))
        key, equals, _value = lines[at].partition(" = ")
        lines[at] = f"{key} = {rng.choice(values)}" if equals else rng.choice((key + key, "[x", ""))
    data = "\n".join(lines).encode()
    toml.write_bytes(mutation.mutate_bytes(data, rng) if rng.random() < 0.3 else data)
    arguments = ["train", str(toml), "--out", str(directory / "out"), "--set", "run.steps=1"]
    if rng.random() < 0.3:
        key = rng.choice(("run.threads", "optim.learning_rate", "data.context", "run.seed", "x"))
        arguments += ["--set", f"{key}={rng.choice(values)}"]
    return _command(*arguments)


def session(rng: random.Random, samples: Path, directory: Path) -> Call:
    """Restore a damaged session."""
    path = directory / "session"
    shutil.copy(samples / "session", path)
    if rng.random() < 0.6:
        _mutate_header(path, rng)
    else:
        path.write_bytes(mutation.mutate_bytes(path.read_bytes(), rng))

    def restore() -> None:
        from yocobit import Engine
        from yocobit.errors import report_errors

        def program() -> None:
            engine = Engine.load(samples / "model-byte_level", threads=1)
            engine.restore(path).feed([1, 2])

        report_errors(program)

    return restore


def prefixes(rng: random.Random, samples: Path, directory: Path) -> Call:
    """Serve with damaged files in the directory of the prefix cache."""
    store = directory / "prefixes"
    shutil.copytree(samples / "prefixes", store)
    files = sorted(store.iterdir())
    for path in rng.sample(files, min(len(files), rng.choice((1, 2, 5)))):
        kind = rng.randrange(4)
        if kind == 0:
            path.rename(store / rng.choice(files).name.upper().replace(".PREFIX", ".prefix"))
        elif kind == 1:
            path.write_bytes(rng.choice([each for each in files if each.exists()]).read_bytes())
        else:
            path.write_bytes(mutation.mutate_bytes(path.read_bytes(), rng))

    def serve() -> None:
        import servers

        from yocobit.serving import ServerSettings

        settings = ServerSettings(
            model=samples / "model-byte_level", threads=1, prefix_dir=store, prefix_dir_mb=1
        )
        with servers.running(settings) as server:
            for n in (60, 3):
                text = "In the beginning " * n
                response = server.post("/v1/completions", prompt=text, max_tokens=2, seed=1)
                assert response.status_code == 200, response.text

    return serve


def _graft_config(path: Path, rng: random.Random) -> None:
    """Exchange the RoPE or the quantisation of a config.json for a valid one of another model."""
    fields = json.loads(path.read_bytes())
    name = rng.choice(sorted(parts.CONFIG_PARTS))
    fields[name] = copy.deepcopy(rng.choice(parts.CONFIG_PARTS[name]))
    path.write_text(json.dumps(fields))


def _graft(fields: dict[str, Any], rng: random.Random) -> None:
    """Exchange a part of a tokenizer for a valid part of another."""
    name = rng.choice(sorted(parts.PARTS))
    part = copy.deepcopy(rng.choice(parts.PARTS[name]))
    if fields.get(name) and rng.random() < 0.4 and name not in ("truncation", "padding"):
        kind, key = parts.SEQUENCES[name]
        part = {"type": kind, key: rng.sample([part, fields[name]], 2)}
    fields[name] = part


KINDS = {
    each.__name__: each
    for each in (
        *(tokenizer, generation_config, template, packed_config, imported, gguf, damaged_run),
        *(train_config, session, prefixes),
    )
}


def _model(rng: random.Random, samples: Path, directory: Path) -> Path:
    """Copy a model; its weights are shared unless they are changed."""
    source = samples / rng.choice(sorted(path.name for path in samples.glob("model-*")))
    model = directory / "model"
    shutil.copytree(source, model)
    return model


def _use(rng: random.Random, model: Path) -> Call:
    text = model.parent / "text.txt"
    text.write_text("In the beginning, naïve ☕ <s> text.\n" * 3)
    options = ["--threads", "1"]
    return _command(
        *rng.choice(
            (
                ["generate", "a b <s> e ☕", "-m", str(model), "-n", "3", *options],
                ["chat", str(model), "-n", "3", "--context", "512", *options],
                ["eval", str(model), str(text), "--context", "32", *options],
            )
        )
    )


def _command(*arguments: str) -> Call:
    def call() -> None:
        import io
        import sys

        from yocobit.cli import run
        from yocobit.errors import report_errors

        sys.stdin = io.TextIOWrapper(io.BytesIO(b"Hello\nAnd then?\n"))
        report_errors(lambda: run(list(arguments)))

    return call


def _mutate_json_file(path: Path, rng: random.Random) -> None:
    fields = mutation.mutate_json(json.loads(path.read_bytes()), rng)
    path.write_bytes(mutation.dump(fields, rng))


def _hash_again(model: Path) -> None:
    """Let the hashes of a packed model match its config.json."""
    from yocobit.packing.file_format import header_sha256

    file = model / "model.safetensors"
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    config = (model / "config.json").read_bytes()
    header["__metadata__"]["config_sha256"] = hashlib.sha256(config).hexdigest()
    header["__metadata__"]["header_sha256"] = header_sha256(header)
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def _mutate_header(path: Path, rng: random.Random) -> None:
    """Exchange values in the header of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        return
    header = mutation.dump(mutation.mutate_json(json.loads(data[8 : 8 + size]), rng), rng)
    length = len(header) if rng.random() < 0.9 else rng.choice((0, 2**63, 2**64 - 1, len(data)))
    path.write_bytes(length.to_bytes(8, "little") + header + data[8 + size :])
