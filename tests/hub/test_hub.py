"""Models by name: downloaded from a local hub, converted once, opened from the cache."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import forked
import pytest
from hub_server import COMMIT, Repository, serve_hub
from packed_models import tokenizer
from published_checkpoint import save_checkpoint
from safetensors.torch import load_file, save_file

from yocobit.errors import ConfigError
from yocobit.packing import read_model

NAME = "org/tiny-bitnet"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("hub") / "published", tokenizer())


@pytest.fixture(scope="module")
def server():
    with serve_hub() as hub:
        yield hub


@pytest.fixture
def hub(server, checkpoint):
    server.repositories = {NAME: Repository.of(checkpoint)}
    server.requests.clear()
    return server


@pytest.fixture
def yocobit(hub, tmp_path):
    """Run a command with caches of its own and the local hub."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        }
        return forked.run(*arguments, variables={**own, **environment})

    return run


def packed_models(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "yocobit" / "models" / "packed").glob("[!.]*/*"))


def is_line(text: str) -> bool:
    return text.count("\n") == 1 and "Traceback" not in text


def test_first_use_downloads_and_converts_the_second_needs_no_network(yocobit, hub, tmp_path):
    first = yocobit("generate", "-m", NAME, "-n", "8", "--temperature", "0", "hello")
    hub.requests.clear()
    second = yocobit("generate", "-m", NAME, "-n", "8", "--temperature", "0", "hello")

    assert first.returncode == 0, first.stderr
    assert "model.safetensors (published codes)" in first.stderr
    assert f"{NAME}: converted once" in first.stderr
    assert second.stdout == first.stdout
    assert second.stderr == ""
    assert hub.requests == []
    assert [path.name for path in packed_models(tmp_path)] == ["tiny-bitnet"]


def test_pull_list_and_remove(yocobit, tmp_path):
    pulled = yocobit("pull", f"{NAME}@main")
    path = Path(pulled.stdout.strip())
    listed = json.loads(yocobit("list", "--json").stdout)["models"]
    table = yocobit("list").stdout
    removed = yocobit("remove", f"{NAME}@main")

    assert pulled.returncode == 0, pulled.stderr
    assert path in packed_models(tmp_path) or not path.exists()
    assert [each["name"] for each in listed] == [f"{NAME}@main"]
    assert listed[0]["revision"] == COMMIT
    assert listed[0]["path"] == str(path)
    assert f"{NAME}@main" in table
    assert COMMIT[:12] in table
    assert "removed" in removed.stdout
    assert packed_models(tmp_path) == []
    assert "no models" in yocobit("list").stdout
    unknown = yocobit("remove", NAME)
    assert unknown.returncode == 2
    assert is_line(unknown.stderr)


def test_pull_without_the_hub_does_not_suggest_the_same_name(yocobit, tmp_path):
    assert yocobit("pull", NAME).returncode == 0
    shutil.rmtree(tmp_path / "hf")

    same = yocobit("pull", NAME, HF_HUB_OFFLINE="1")
    misspelt = yocobit("pull", NAME.upper(), HF_HUB_OFFLINE="1")

    assert "connect to the network" in same.stderr and "did you mean" not in same.stderr
    assert f"did you mean {NAME}?" in misspelt.stderr


def test_the_help_of_pull_lists_models_and_sizes_of_the_documentation(yocobit):
    page = Path(__file__).parents[2] / "docs" / "getting-started" / "published-models.md"
    models = re.findall(r"^\| `(\S+/\S+)`(?!, with).*?\| ([\d.]+ GB) \|", page.read_text(), re.M)
    models = sorted(models, key=lambda model: float(model[1].split()[0]))

    words = " ".join(yocobit("pull", "--help", COLUMNS="80").stdout.split())

    assert len(models) == 6  # all but the one that needs an option
    assert ", ".join(f"{name} {size}" for name, size in models) in words


def test_a_run_starts_from_a_model_on_the_hub(yocobit, tmp_path):
    file, out = tmp_path / "my.txt", tmp_path / "run"
    file.write_text("the sea is deep and wide. " * 400)
    settings = ["run.steps=1", "run.threads=1", "data.context=32", "optim.batch_size=1",
                "run.eval_tokens=64", "run.sample_every=0"]  # fmt: skip
    options = [each for setting in settings for each in ("--set", setting)]

    result = yocobit("train", str(file), "--out", str(out), "--init", NAME, *options)

    assert result.returncode == 0, result.stderr
    (model,) = packed_models(tmp_path)
    assert f"starting from {model}: master weights are made from the integers" in result.stdout
    assert read_model(model).config.layers == ("full", "full")


def test_options_of_pull_hold_for_the_name(yocobit, tmp_path):
    yocobit("pull", NAME, "--head", "int4")
    shown = yocobit("inspect", NAME)

    assert "int4" in shown.stdout
    assert len(packed_models(tmp_path)) == 1


def test_options_of_pull_hold_when_the_conversion_is_outdated(checkpoint, tmp_path, monkeypatch):
    from yocobit import hub
    from yocobit.hub import cache

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = hub.pull(checkpoint, hub.Options(head="int4"))
    monkeypatch.setattr(cache, "VERSION", "next")
    again = hub.resolve(checkpoint)

    assert again != path
    assert read_model(again).head_format.name == "int4"


def test_a_user_without_a_home_directory_is_told_so_in_one_line(tmp_path, monkeypatch):
    import pwd

    from yocobit import hub

    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="HOME must be set, as this user has no home directory"):
        hub.ModelCache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert hub.ModelCache().root == tmp_path / "yocobit" / "models"


def test_conversion_is_repeated_when_its_tokenizer_changes(checkpoint, tmp_path, monkeypatch):
    from yocobit import hub

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    other = tmp_path / "tokenizer"
    other.mkdir()
    shutil.copy(checkpoint / "tokenizer.json", other)
    options = hub.Options(tokenizer=str(other))
    first = hub.pull(checkpoint, options)
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}")
    second = hub.pull(checkpoint, options)

    assert second != first
    assert (second / "chat_template.jinja").read_text() == "{{ messages[0].content }}"
    assert hub.pull(checkpoint, options) == second


def test_remove_keeps_a_model_that_another_name_shares(checkpoint, tmp_path):
    from yocobit.hub import ModelCache, Options
    from yocobit.hub.cache import SourceFile

    models = ModelCache(tmp_path / "cache")
    names = ("config.json", "model.safetensors")
    files = tuple(SourceFile.of(checkpoint, name) for name in names)
    path = models.add("a/tiny", checkpoint, files, Options())
    models.add("b/tiny", checkpoint, files, Options())

    assert models.remove("a/tiny") == 0
    assert path.is_dir()
    assert models.remove("b/tiny") > 0
    assert not path.exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"key": ""},
        {"key": "0" * 31},
        {"key": f"../{'0' * 32}"},
        {"key": f"{'0' * 32}\n"},
        {"model": ""},
        {"model": ".."},
        {"model": "../other"},
        {"files": [{"name": "/etc/passwd", "size": 0, "mtime_ns": 0, "sha256": ""}]},
        {"files": [{"name": "a/../../b", "size": 0, "mtime_ns": 0, "sha256": ""}]},
    ],
)
def test_a_damaged_entry_of_a_name_deletes_nothing(checkpoint, tmp_path, fields):
    from yocobit.hub import ModelCache, Options
    from yocobit.hub.cache import SourceFile

    models = ModelCache(tmp_path / "cache")
    files = (SourceFile.of(checkpoint, "config.json"),)
    path = models.add("a/tiny", checkpoint, files, Options())
    (entry,) = (tmp_path / "cache" / "names").iterdir()
    entry.write_text(json.dumps({**json.loads(entry.read_text()), **fields}))

    with pytest.raises(ConfigError, match=r"'a/tiny': is not in .*, which has no models"):
        models.remove("a/tiny")

    assert path.is_dir()
    assert models.find("a/tiny") is None
    assert models.add("a/tiny", checkpoint, files, Options()) == path  # written again
    assert models.find("a/tiny") is not None


@pytest.fixture
def gguf(tmp_path, monkeypatch) -> Path:
    """A small GGUF file."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "exporters")
    from exported_models import random_model

    from yocobit.exporters import export_gguf

    file = tmp_path / "x-tq2_0.gguf"
    export_gguf(random_model(tmp_path / "source"), file)
    return file


def test_gguf_file_in_a_folder_of_a_repository_is_converted(yocobit, hub, gguf, tmp_path):
    hub.repositories["org/x"] = Repository({"sub/x-tq2_0.gguf": gguf.read_bytes()})

    named, chosen = yocobit("pull", "org/x:sub/x-tq2_0.gguf"), yocobit("pull", "org/x")

    assert named.returncode == chosen.returncode == 0, named.stderr + chosen.stderr
    assert [path.name for path in packed_models(tmp_path)] == ["x"]


@pytest.mark.parametrize("name", ["..gguf", "...gguf", "..@x.gguf", r"a\b.gguf"])
def test_files_whose_names_are_no_names_of_directories_are_cached(
    gguf, tmp_path, monkeypatch, name
):
    from yocobit import hub

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = gguf.rename(tmp_path / name)

    path = hub.resolve(file)

    assert packed_models(tmp_path) == [path]
    assert path.name == "model"
    assert hub.resolve(file) == path
    assert hub.ModelCache().remove(str(file)) > 0


def test_names_that_are_not_utf8_are_refused_in_one_line(gguf, tmp_path, monkeypatch):
    from yocobit import hub

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tokenizer := tmp_path / "\udcff").mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")

    with pytest.raises(
        ConfigError, match="/\udcff: must have a name in UTF-8 to be cached; rename"
    ):
        hub.pull(gguf, hub.Options(tokenizer=str(tokenizer)))
    with pytest.raises(ConfigError, match="gguf: must have a name in UTF-8 to be cached"):
        hub.resolve(gguf.rename(tmp_path / "\udcff.gguf"))


def test_mlx_directory_with_shards_is_downloaded_and_converted(yocobit, hub, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "importers")
    from low_bit_directories import model_and_matrices, publish_mlx

    model, matrices = model_and_matrices(vocab_size=512)
    source = publish_mlx(model, matrices, tmp_path / "mlx", 2)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, source / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    (source / "tokenizer.json").write_text(tokenizer().to_str())
    (source / "modeling.py").write_text("raise SystemExit")
    hub.repositories["prism/bonsai"] = Repository.of(source)

    shown = yocobit("generate", "the", "--model", "prism/bonsai", "--max-tokens", "3")

    assert shown.returncode == 0, shown.stderr
    assert "model.safetensors (published codes)" in shown.stderr
    assert "imported from MLX, 2-bit, scales in F16" in shown.stderr
    assert "projections in ternary_g128 with one scale per group of 128 columns" in shown.stderr
    assert not any(path.endswith("modeling.py") for _, path, _ in hub.requests)


def test_unsupported_directory_is_refused_before_its_weights_are_downloaded(yocobit, hub):
    config = json.dumps({"model_type": "qwen3_5"}).encode()
    hub.repositories["prism/bonsai-27b"] = Repository(
        {"config.json": config, "model.safetensors": bytes(1000)}
    )

    refused = yocobit("pull", "prism/bonsai-27b")

    assert refused.returncode == 2
    assert is_line(refused.stderr), refused.stderr
    assert "prism/bonsai-27b/config.json: model_type must be" in refused.stderr
    assert "gated delta-net layers" in refused.stderr
    assert not any(path.endswith("model.safetensors") for _, path, _ in hub.requests)


@pytest.mark.parametrize(
    ("architecture", "extra", "message"),
    [
        ("qwen35", None, "gated delta-net layers"),
        ("qwen3", "prism.hadamard.version", "weights are in a rotated basis"),
    ],
)
def test_unsupported_gguf_file_is_refused_by_its_first_bytes(
    yocobit, hub, monkeypatch, architecture, extra, message
):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "importers")
    from gguf_files import key_value, raw_file, string

    keys = [key_value("general.architecture", 8, string(architecture))]
    keys += [key_value(extra, 4, bytes(4))] if extra else []
    keys += [key_value(f"tokenizer.{i}", 8, string("x" * 1000)) for i in range(200)]
    file = raw_file(keys) + bytes(1 << 20)
    hub.repositories["prism/bonsai-2"] = Repository({"bonsai-Q2_0.gguf": file})

    refused = yocobit("pull", "prism/bonsai-2")

    assert refused.returncode == 2
    assert is_line(refused.stderr), refused.stderr
    assert "prism/bonsai-2/bonsai-Q2_0.gguf: " in refused.stderr
    assert message in refused.stderr
    read = [(method, bytes) for method, path, bytes in hub.requests if path.endswith(".gguf")]
    assert read == [("GET", "bytes=0-65535")]


def test_interrupted_download_is_completed(yocobit, hub):
    repository = hub.repositories[NAME]
    size = len(repository.files["model.safetensors"])
    repository.cut_after["model.safetensors"] = size // 2

    done = yocobit("pull", NAME)

    assert done.returncode == 0, done.stderr
    sent = [path for method, path, _ in hub.requests if method == "GET"]
    assert len([path for path in sent if path.endswith("model.safetensors")]) == 2


def test_wrong_hash_is_reported_and_the_file_downloaded_again(yocobit, hub, tmp_path):
    hub.repositories[NAME].hash_of["model.safetensors"] = "0" * 64
    damaged = yocobit("pull", NAME)
    hub.repositories[NAME].hash_of.clear()
    again = yocobit("pull", NAME)

    assert damaged.returncode == 2
    assert "model.safetensors must have sha256 000" in damaged.stderr.splitlines()[-1]
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/missing", "is neither an existing path nor a model on the hub"),
        (f"{NAME}@v9", "has no revision 'v9'"),
        (f"{NAME}:x.gguf", "has no file 'x.gguf'"),
    ],
)
def test_missing_model_is_one_line(yocobit, name, message, tmp_path):
    failed = yocobit("inspect", name)

    assert failed.returncode == 2
    assert is_line(failed.stderr), failed.stderr
    assert message in failed.stderr
    assert packed_models(tmp_path) == []


def test_gated_model_needs_a_token(yocobit, hub):
    hub.repositories[NAME].is_gated, hub.repositories[NAME].token = True, "hf_secret"

    without = yocobit("inspect", NAME)
    done = yocobit("inspect", NAME, HF_TOKEN="hf_secret")

    assert without.returncode == 2
    assert is_line(without.stderr), without.stderr
    assert "is gated; accept its licence" in without.stderr
    assert done.returncode == 0, done.stderr


def test_without_network(yocobit, hub, tmp_path):
    nothing = yocobit("inspect", NAME, HF_HUB_OFFLINE="1")
    unreachable = yocobit("inspect", NAME, HF_ENDPOINT="http://127.0.0.1:9")
    yocobit("pull", NAME)
    shutil.rmtree(tmp_path / "cache")
    offline = yocobit("inspect", NAME, HF_HUB_OFFLINE="1")

    assert nothing.returncode == unreachable.returncode == 2
    assert is_line(nothing.stderr)
    assert "HF_HUB_OFFLINE is set" in nothing.stderr
    assert is_line(unreachable.stderr), unreachable.stderr
    assert "the hub cannot be reached" in unreachable.stderr
    assert offline.returncode == 0, offline.stderr


def test_local_checkpoint_is_converted_once_and_again_when_it_changes(
    yocobit, checkpoint, tmp_path
):
    folder = tmp_path / "local"
    shutil.copytree(checkpoint, folder)
    first = yocobit("inspect", str(folder))
    second = yocobit("inspect", str(folder))
    config = folder / "config.json"
    config.write_text(config.read_text().replace("1e-05", "1e-06"), encoding="utf-8")
    third = yocobit("inspect", str(folder))

    assert first.returncode == third.returncode == 0, first.stderr
    assert "converted once" in first.stderr
    assert second.stderr == ""
    assert second.stdout == first.stdout
    assert "converted once" in third.stderr
    assert len(packed_models(tmp_path)) == 2


@pytest.mark.parametrize("edited", ["config.json", "other/tokenizer.json"])
def test_source_that_is_edited_while_it_is_converted_is_not_cached(
    checkpoint, tmp_path, monkeypatch, edited
):
    from yocobit import hub
    from yocobit.errors import ConfigError
    from yocobit.hub import cache

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "local"
    shutil.copytree(checkpoint, folder)
    (folder / "other").mkdir()
    shutil.copy(checkpoint / "tokenizer.json", folder / "other")
    options = hub.Options(tokenizer=str(folder / "other"))
    convert = cache.importers.import_model

    def convert_and_edit(*args, **settings):
        model = convert(*args, **settings)
        file = folder / edited
        file.write_text(file.read_text() + "\n")
        return model

    with monkeypatch.context() as patch:
        patch.setattr(cache.importers, "import_model", convert_and_edit)
        with pytest.raises(ConfigError, match="must stay unchanged while it is converted"):
            hub.pull(folder, options)
    assert packed_models(tmp_path) == hub.ModelCache().entries() == []
    assert hub.pull(folder, options).is_dir()


def test_failed_conversion_leaves_nothing(yocobit, checkpoint, tmp_path):
    folder = tmp_path / "local"
    shutil.copytree(checkpoint, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    failed = yocobit("inspect", str(folder))

    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr
    left = tmp_path / "cache" / "yocobit" / "models"
    assert [path for path in left.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_full_disk_is_one_line(checkpoint, tmp_path, monkeypatch):
    from yocobit import hub
    from yocobit.errors import UserError
    from yocobit.hub import cache

    def full(*args, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache.importers, "import_model", full)

    with pytest.raises(UserError, match="free disk space, or set XDG_CACHE_HOME"):
        hub.resolve(str(checkpoint))
    assert packed_models(tmp_path) == []
