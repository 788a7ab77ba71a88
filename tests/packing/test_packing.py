"""Packed models: pack() writes, read_model() validates, verify() finds damage."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from yocobit import _native
from yocobit.config import ConfigError, ModelConfig, preset
from yocobit.costs import describe, summarize
from yocobit.data.tokenizer import train_tokenizer
from yocobit.mixers import parameter_shapes
from yocobit.model import Decoder
from yocobit.model.quantization import quantize_weight
from yocobit.packing import (
    PackedModelError,
    checkpoints,
    expected_tensors,
    pack,
    read_model,
    verify,
    writer,
)
from yocobit.packing.file_format import DTYPES, TensorSpec, header_sha256
from yocobit.packing.formats import FORMATS
from yocobit.packing.layout import quantize_rows
from yocobit.packing.writer import new_directory
from yocobit.training import checkpoint

KINDS = ["ternary", "ternary_row", "sign", "dense"]

TOKENIZER = train_tokenizer(["one two three"], 260)
FILES = ["config.json", "tokenizer.json", "model.safetensors"]


@pytest.fixture(scope="module", autouse=True)
def without_fsync():
    """Skip fsync, which would be most of the run time: no test here loses power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


def save_checkpoint(directory: Path, config: ModelConfig, threads: int = 1, **changed) -> Path:
    """Save a randomly initialised model as a run; `changed` sets first values of parameters."""
    torch.manual_seed(0)
    model = Decoder(config)
    for name, value in changed.items():
        model.state_dict()[name.replace("__", ".")].flatten()[:1].copy_(torch.tensor(value))
    state = checkpoint.RunState(corpus_sha256="", step=1, threads=threads)
    checkpoint.save(directory / "run", state, model, {}, {}, TOKENIZER, keep=1)
    return directory / "run"


@pytest.fixture(scope="module")
def models(tmp_path_factory, without_fsync) -> dict[str, Path]:
    """A packed nano model of each kind of weights; a test that changes one copies it."""
    directory = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        run = save_checkpoint(directory / kind, preset("nano").replace(weights=kind))
        pack(run, directory / kind / "model")
    return {kind: directory / kind / "model" for kind in KINDS}


@pytest.fixture
def ternary(models, tmp_path) -> Path:
    """A copy of the ternary model that the test may change."""
    return Path(shutil.copytree(models["ternary"], tmp_path / "model"))


def split(model: Path) -> tuple[dict, bytes]:
    """Return header and tensor data."""
    raw = (model / "model.safetensors").read_bytes()
    begin = 8 + struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8:begin]), raw[begin:]


def join(model: Path, header: dict, data: bytes) -> None:
    """Write header and tensor data with a correct header hash, as a faulty writer would."""
    header["__metadata__"]["header_sha256"] = header_sha256(header)
    raw = json.dumps(header).encode()
    raw += b" " * (-(8 + len(raw)) % 64)
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def overwrite(model: Path, tensor: str, value: bytes) -> None:
    """Replace the first bytes of a tensor, and update its hash."""
    header, data = split(model)
    begin, end = header[tensor]["data_offsets"]
    data = data[:begin] + value + data[begin + len(value) :]
    header["__metadata__"][f"sha256:{tensor}"] = hashlib.sha256(data[begin:end]).hexdigest()
    join(model, header, data)


def engine(model) -> _native.Engine:
    tensors = {
        name: (tensor.dtype, list(tensor.shape), tensor.begin, tensor.end)
        for name, tensor in model.tensors.items()
    }
    formats = {name: stored.format.name for name, stored in model.parameters.items()}
    return _native.Engine(str(model.file), model.config.to_dict(), tensors, formats, "", 1)


def stored(model, name: str) -> np.ndarray:
    """Read a tensor at the offset that the reader returned."""
    tensor = model.tensors[name]
    dtype = DTYPES[tensor.dtype]
    raw = model.file.read_bytes()[tensor.begin : tensor.end]
    return np.frombuffer(raw, dtype).reshape(tensor.shape)


# ---- the output of pack()


SHAPES = {
    "retention": preset("nano"),
    "window": preset("nano").replace(layers=("window", "full", "cross"), n_self_kv_heads=1),
    "gmu": preset("nano").replace(layers=("full", "gmu", "cross")),
    "sign ffn": preset("nano").replace(ffn="sign", tie_embeddings=True),
    "relu2": preset("nano").replace(ffn="relu2", sub_norm=False, layers=("full",)),
}


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_parameter_shapes_equal_those_of_the_decoder(config):
    expected = {name: tuple(value.shape) for name, value in Decoder(config).state_dict().items()}
    if config.tie_embeddings:
        del expected["head.weight"]

    assert parameter_shapes(config) == expected


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_model_runs_in_the_engine(kind, config, tmp_path):
    run = save_checkpoint(tmp_path, config.replace(weights=kind))

    opened = engine(pack(run, tmp_path / "model"))

    logits = np.empty(opened.vocab_size, dtype=np.float32)
    session = _native.Session(opened, 8, "f32")
    opened.feed(session, np.array([1, 2, 3], dtype=np.int32), "last", logits)

    assert np.isfinite(logits).all()
    assert logits.std() > 0


@pytest.mark.parametrize("kind", ["ternary", "ternary_row", "sign"])
def test_packed_tensors_are_the_quantised_master_weights(kind, tmp_path):
    run = save_checkpoint(tmp_path, preset("nano").replace(weights=kind))
    model = pack(run, tmp_path / "model")

    for name, master in checkpoint.load_model(run).state_dict().items():
        packed, role = stored(model, name), model.parameters[name].role
        if role == "projection":
            weights, scale = quantize_weight(master, kind)
            unpacked = FORMATS[kind].decode(packed, *master.shape)
            np.testing.assert_array_equal(unpacked, weights.numpy())
            assert stored(model, f"{name}_scale").tolist() == scale.flatten().tolist()
        elif role in ("embedding", "head"):
            codes, scales = quantize_rows(master.numpy())
            np.testing.assert_array_equal(packed, codes)
            np.testing.assert_array_equal(stored(model, f"{name}_scale"), scales)
        else:
            np.testing.assert_array_equal(packed, master.numpy())


@pytest.mark.parametrize(("weights", "dtype"), [(None, "F32"), ("f32", "F32"), ("f16", "F16")])
def test_dense_weights_are_stored_as_requested_and_norms_as_f32(weights, dtype, tmp_path):
    run = save_checkpoint(tmp_path, preset("nano").replace(weights="dense"))

    model = pack(run, tmp_path / "model", weights)

    engine(model)
    for name, master in checkpoint.load_model(run).state_dict().items():
        is_weight = model.parameters[name].role in ("embedding", "head", "projection")
        assert model.tensors[name].dtype == (dtype if is_weight else "F32")
        packed = stored(model, name)
        np.testing.assert_array_equal(packed, master.numpy().astype(packed.dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_safetensors_library_reads_the_same_tensors(kind, models):
    model = read_model(models[kind])

    loaded = safetensors.numpy.load_file(model.file)

    assert loaded.keys() == model.tensors.keys()
    for name, array in loaded.items():
        np.testing.assert_array_equal(array, stored(model, name))


@pytest.mark.parametrize("vocab_size", [512, 511])
def test_tensors_of_a_multiple_of_64_bytes_are_aligned_in_the_file(vocab_size, tmp_path):
    heads = {"n_heads": 3, "n_kv_heads": 1, "n_self_heads": 3, "n_self_kv_heads": 1}
    config = preset("nano").replace(vocab_size=vocab_size, d_model=72, **heads)

    model = pack(save_checkpoint(tmp_path, config), tmp_path / "model")

    assert all(t.begin % 4 == 0 for t in model.tensors.values())
    aligned = [t for t in model.tensors.values() if (t.end - t.begin) % 64 == 0]
    assert sum(t.dtype == "U8" for t in aligned) == sum(
        parameter.role == "projection" for parameter in model.parameters.values()
    )
    assert all(t.begin % 64 == 0 for t in aligned)
    assert len(aligned) < len(model.tensors)


def test_packed_directory_has_config_tokenizer_and_generation_config(tmp_path):
    run = save_checkpoint(tmp_path, preset("nano"))

    model = pack(run, tmp_path / "model")

    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert {path.name for path in model.path.iterdir()} == names
    config = json.loads((model.path / "config.json").read_text())
    assert config.pop("model_type") == "yocobit"
    assert len(config.pop("architectures")) == 1
    assert config == preset("nano").to_dict()
    saved = checkpoints.find(run) / "tokenizer.json"
    assert (model.path / "tokenizer.json").read_bytes() == saved.read_bytes()
    generation = json.loads((model.path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 0
    assert generation.keys() > {"temperature", "top_p", "do_sample", "max_new_tokens"}


def test_checkpoint_without_tokenizer_packs_without_one(tmp_path):
    saved = checkpoints.find(save_checkpoint(tmp_path, preset("nano")))
    (saved / "tokenizer.json").unlink()

    model = pack(saved, tmp_path / "model")

    assert not (model.path / "tokenizer.json").exists()
    assert "tokenizer_sha256" not in model.metadata
    assert "eos_token_id" not in json.loads((model.path / "generation_config.json").read_text())
    done: list[tuple[int, int]] = []
    assert verify(model.path, lambda *sizes: done.append(sizes)) == []
    assert [total for _, total in done] == [done[-1][0]] * len(model.tensors)


def test_packed_bytes_do_not_depend_on_the_thread_count_of_pack(tmp_path):
    config = preset("tiny").replace(vocab_size=64, layers=("full",) * 2)
    run = save_checkpoint(tmp_path, config, threads=2)
    before = torch.get_num_threads()

    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            pack(run, tmp_path / f"model{threads}")
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)

    one, two = (tmp_path / f"model{threads}" / "model.safetensors" for threads in (1, 2))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_peak_memory_of_pack_is_a_few_copies_of_the_largest_tensor(kind, tmp_path, monkeypatch):
    config = preset("nano").replace(
        d_model=256, d_ff=1024, layers=("full",) * 12, weights=kind, vocab_size=64
    )
    run = save_checkpoint(tmp_path, config)
    largest, total = 4 * 256 * 1024, (checkpoints.find(run) / "model.safetensors").stat().st_size

    monkeypatch.setattr(writer, "_PIECE_BYTES", 1 << 12)  # the write buffer
    tracemalloc.start()
    pack(run, tmp_path / "model")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 4 * largest < total / 8


def test_pack_of_dense_weights_works_without_torch(tmp_path):
    run = save_checkpoint(tmp_path, preset("nano").replace(weights="dense"))
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from yocobit.packing import pack\n"
        "pack(*map(Path, sys.argv[1:]))\n"
    )

    subprocess.run([sys.executable, "-c", code, str(run), str(tmp_path / "model")], check=True)

    assert verify(tmp_path / "model") == []


# ---- inputs that pack() rejects without leaving files


@pytest.mark.parametrize(
    ("trained", "requested"),
    [
        ("dense", "ternary"),
        ("ternary", "ternary_row"),
        ("ternary_row", "ternary"),
        ("dense", "sign"),
        ("ternary", "sign"),
        ("ternary", "f32"),
        ("sign", "ternary"),
        ("sign", "f16"),
    ],
)
def test_pack_rejects_a_format_that_differs_from_training(trained, requested, tmp_path):
    run = save_checkpoint(tmp_path, preset("nano").replace(weights=trained))

    with pytest.raises(ConfigError, match=f'trained with weights = "{trained}".*garbage; train'):
        pack(run, tmp_path / "model", requested)

    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_pack_rejects_an_unknown_weight_format(tmp_path):
    run = save_checkpoint(tmp_path, preset("nano"))

    with pytest.raises(ConfigError, match=r"weights must be one of ternary, .*f16 but is 'int4'"):
        pack(run, tmp_path / "model", "int4")


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        ({"weights": "TERNARY"}, "weights must be one of ternary, .* f16 but is 'TERNARY'"),
        ({"weights": "int8"}, "weights must be one of ternary, .* f16 but is 'int8'"),
        ({"head": "I8"}, "head must be one of int8, int4, f16, f32 but is 'I8'"),
        ({"weights": "f16"}, "weights must be ternary for a model with ternary weights but is"),
    ],
)
def test_expected_tensors_rejects_an_unknown_or_unsuitable_format(formats, message):
    with pytest.raises(ConfigError, match=message):
        expected_tensors(preset("nano"), **formats)


def test_head_and_embedding_of_a_ternary_model_are_packed_in_float(tmp_path):
    run = save_checkpoint(tmp_path, preset("nano"))
    masters = safetensors.numpy.load_file(checkpoints.find(run) / "model.safetensors")

    for head, dtype in (("f32", np.float32), ("f16", np.float16)):
        packed = pack(run, tmp_path / head, head=head)

        assert packed.projection_format.name == "ternary" and packed.head_format.name == head
        for name in ("embedding.weight", "head.weight"):
            np.testing.assert_array_equal(stored(packed, name), masters[name].astype(dtype))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["embedding__weight", "layers__1__ffn__up_proj__weight", "norm__weight"]
)
def test_pack_rejects_non_finite_master_weights_by_name(name, bad, tmp_path):
    run = save_checkpoint(tmp_path, preset("nano"), **{name: bad})

    with pytest.raises(ConfigError, match=f"'{name.replace('__', '.')}' must be finite but has 1"):
        pack(run, tmp_path / "new" / "model")

    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_pack_rejects_f16_for_a_weight_beyond_its_range(tmp_path):
    config = preset("nano").replace(weights="dense")
    run = save_checkpoint(tmp_path, config, head__weight=1e5)

    with pytest.raises(ConfigError, match=r"'head.weight': .* within 65504 .* reach 100000"):
        pack(run, tmp_path / "model", "f16")


def test_interrupted_pack_leaves_no_files(tmp_path, monkeypatch):
    def interrupt(path, specs, tensors, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    run = save_checkpoint(tmp_path, preset("nano"))
    monkeypatch.setattr(writer, "write_safetensors", interrupt)

    with pytest.raises(KeyboardInterrupt):
        pack(run, tmp_path / "a" / "b" / "model")

    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("piece_bytes", [64, 100, 4096])
def test_bytes_of_a_file_do_not_depend_on_the_piece_size(tmp_path, monkeypatch, piece_bytes):
    tensors = {
        "a": np.arange(96, dtype=np.uint8),
        "b": np.arange(1000, dtype=np.float32).reshape(10, 100),
        "c": np.zeros((8, 0), dtype=np.int8),
    }
    dtypes = {"uint8": "U8", "float32": "F32", "int8": "I8"}
    specs = {name: TensorSpec(dtypes[t.dtype.name], t.shape) for name, t in tensors.items()}
    writer.write_safetensors(tmp_path / "whole", specs, tensors.items(), {"format": "yocobit"})
    monkeypatch.setattr(writer, "_PIECE_BYTES", piece_bytes)

    writer.write_safetensors(tmp_path / "pieces", specs, tensors.items(), {"format": "yocobit"})

    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()
    found = safetensors.numpy.load_file(tmp_path / "pieces")
    assert all((found[name] == tensors[name]).all() for name in tensors)


def test_pack_rejects_a_directory_that_is_not_empty(tmp_path):
    run = save_checkpoint(tmp_path, preset("nano"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")

    for out in (tmp_path / "full", tmp_path / "full" / "mine.txt"):
        with pytest.raises(ConfigError, match="must not exist or be an empty directory"):
            pack(run, out)

    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_pack_fills_an_empty_output_directory(tmp_path):
    run = save_checkpoint(tmp_path, preset("nano"))
    (tmp_path / "model").mkdir()

    assert verify(pack(run, tmp_path / "model").path) == []


# ---- files that the reader rejects


def test_reader_rejects_a_checkpoint_and_a_run(tmp_path):
    run = save_checkpoint(tmp_path, preset("nano"))

    for path in (run, checkpoints.find(run)):
        with pytest.raises(PackedModelError, match=r"is a checkpoint.*run yocobit pack"):
            read_model(path)


def test_reader_rejects_a_safetensors_file_of_another_format(ternary):
    safetensors.numpy.save_file(
        {"x": np.zeros(3)}, ternary / "model.safetensors", metadata={"format": "pt"}
    )

    with pytest.raises(PackedModelError, match="is not a packed model; run yocobit pack"):
        read_model(ternary)


def test_reader_rejects_a_path_that_is_not_a_directory(ternary):
    with pytest.raises(PackedModelError, match="nowhere: no such directory"):
        read_model(ternary / "nowhere")
    with pytest.raises(PackedModelError, match=r"model.safetensors: is a file, not a directory"):
        read_model(ternary / "model.safetensors")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_reader_rejects_a_missing_file_by_name(name, ternary):
    (ternary / name).unlink()

    with pytest.raises(PackedModelError, match=f"holds no {name}"):
        read_model(ternary)


@pytest.mark.parametrize("size", [0, 7, 8, 100, 30_000, -1])
def test_reader_rejects_a_truncated_file(size, ternary):
    file = ternary / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])

    with pytest.raises(PackedModelError, match=r"model.safetensors: is truncated: "):
        read_model(ternary)


def test_reader_rejects_appended_bytes(ternary):
    with (ternary / "model.safetensors").open("ab") as stream:
        stream.write(b"\0")

    with pytest.raises(PackedModelError, match="has appended bytes: must have"):
        read_model(ternary)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"[]", "must be an object but is list"),
        (b'{"__metadata__": {', "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b'{"a": 1, "a": 1}', "key 'a' occurs twice"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_reader_rejects_a_header_that_is_not_an_object(raw, message, ternary):
    (ternary / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)

    with pytest.raises(PackedModelError, match=message):
        read_model(ternary)


def test_reader_rejects_an_oversized_header(ternary):
    (ternary / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62))

    with pytest.raises(PackedModelError, match=f"at most 100000000 bytes but has {1 << 62}"):
        read_model(ternary)


def test_reader_rejects_a_changed_config(ternary):
    config = json.loads((ternary / "config.json").read_text())
    (ternary / "config.json").write_text(json.dumps({**config, "rope_theta": 5000.0}))

    with pytest.raises(PackedModelError, match=r"config.json: must have sha256 '.*undo the edit"):
        read_model(ternary)


def test_reader_rejects_a_changed_header(ternary):
    file = ternary / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw.replace(b'"sha256:norm.weight":"', b'"sha256:norm.weighs":"'))

    with pytest.raises(PackedModelError, match="header must have sha256"):
        read_model(ternary)


def leave_gap(header):
    # The sizes stay valid, but there is a gap before norm.weight.
    header["norm.weight"]["data_offsets"] = [x + 64 for x in header["norm.weight"]["data_offsets"]]


def overlap(header):
    header["norm.weight"]["data_offsets"] = header["shared_kv.norm.weight"]["data_offsets"]


def misalign(header):
    # The 4-byte scale is first and shifts all other tensors by 4.
    first = header["embedding.weight_scale"]
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [x + 4 for x in entry["data_offsets"]]
    scale = header["shared_kv.v_proj.weight_scale"]
    end = max(e["data_offsets"][1] for n, e in header.items() if n != "__metadata__")
    assert scale["data_offsets"][1] == end
    assert first["data_offsets"][0] > 0
    scale["data_offsets"] = [0, 4]


def set_entry(name, **fields):
    return lambda header: header[name].update(fields)


def set_metadata(name, value):
    return lambda header: header["__metadata__"].update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_metadata("format_version", "2"), "format_version must be '1' but is '2'"),
        (set_metadata("note", 1), "metadata 'note' must be a string but is 1"),
        (lambda header: header.pop("norm.weight"), "tensor 'norm.weight' is missing"),
        (
            lambda header: header.update(extra=header["norm.weight"]),
            "tensor 'extra' must not be there",
        ),
        (lambda header: header.update({"norm.weight": 3}), "'norm.weight' must have dtype.*is 3"),
        (set_entry("norm.weight", dtype="F16"), r"'norm.weight' must be F32 \[64\] but is 'F16'"),
        (set_entry("norm.weight", shape=[8, 8]), r"must be F32 \[64\] but is 'F32' \[8, 8\]"),
        (set_entry("norm.weight", shape=[64.0]), r"must be F32 \[64\] but is 'F32' \[64.0\]"),
        (set_entry("norm.weight", shape=None), r"must be F32 \[64\] but is 'F32' None"),
        (set_entry("head.weight", dtype="F32"), r"'head.weight' must be I8 \[512, 64\]"),
        (set_entry("head.weight", dtype="U8"), r"'head.weight' must be U8 \[64, 1, 8, 32\]"),
        (set_entry("norm.weight", data_offsets=[0, 255]), "two data_offsets, 256 apart"),
        (set_entry("norm.weight", data_offsets=[-256, 0]), "two data_offsets, 256 apart"),
        (set_entry("norm.weight", data_offsets=[False, 256]), "two data_offsets, 256 apart"),
        (set_entry("norm.weight", data_offsets=[0, 256, 1]), "two data_offsets, 256 apart"),
        (
            set_entry("norm.weight", data_offsets=[1 << 61, (1 << 61) + 256]),
            "must start at byte",
        ),
        (leave_gap, "must start at byte .* where the previous tensor ends"),
        (overlap, "must start at byte .* where the previous tensor ends"),
        (misalign, "must start at a multiple of 64 but starts at byte"),
    ],
)
def test_reader_rejects_an_invalid_header_by_name(change, message, ternary):
    header, data = split(ternary)
    change(header)
    join(ternary, header, data)

    with pytest.raises(PackedModelError, match=message) as caught:
        read_model(ternary)

    assert str(ternary / "model.safetensors") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reader_rejects_dense_weights_of_two_dtypes(models, tmp_path):
    model = Path(shutil.copytree(models["dense"], tmp_path / "model"))
    header, data = split(model)
    header["head.weight"]["dtype"] = "F16"
    join(model, header, data)

    with pytest.raises(PackedModelError, match=r"'head.weight' must be F32 .* is 'F16'"):
        read_model(model)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -1.0])
@pytest.mark.parametrize("name", ["head.weight_scale", "layers.0.mixer.q_proj.weight_scale"])
def test_reader_rejects_a_bad_scale_by_name(name, bad, ternary):
    overwrite(ternary, name, struct.pack("<f", bad))

    with pytest.raises(PackedModelError, match=f"'{name}' must be finite and positive but holds"):
        read_model(ternary)


@pytest.mark.parametrize("name", ["norm.weight", "layers.0.mixer.decay_proj.weight"])
def test_reader_rejects_nan_in_norms_and_decays_by_name(name, ternary):
    overwrite(ternary, name, struct.pack("<f", float("nan")))

    with pytest.raises(PackedModelError, match=f"'{name}' must be finite but holds nan"):
        read_model(ternary)


def test_reader_raises_only_its_own_errors_on_a_damaged_header(ternary):
    rng = np.random.default_rng(0)
    file = ternary / "model.safetensors"
    sound = file.read_bytes()
    header_end = 8 + struct.unpack("<Q", sound[:8])[0]

    for _ in range(250):
        damaged = bytearray(sound)
        for position in rng.integers(0, header_end, size=rng.integers(1, 4)):
            damaged[position] = rng.integers(256)
        if rng.random() < 0.3:
            damaged = damaged[: rng.integers(header_end)]
        if damaged == sound:
            continue
        file.write_bytes(damaged)
        with pytest.raises((PackedModelError, ConfigError)):
            read_model(ternary)


def test_reader_raises_only_its_own_errors_on_an_invalid_value_in_the_header(ternary):
    values = [None, True, -1, 1 << 70, 10**4290, 1e400, "\ud800\n", [], [[]], {}, [1 << 80] * 4]
    sound, data = split(ternary)
    small = ternary.parent / "small"
    shutil.copytree(ternary, small)

    for key in ("dtype", "shape", "data_offsets", None):
        for value in values:
            header = json.loads(json.dumps(sound))
            if key is None:
                header["norm.weight"] = value
            else:
                header["norm.weight"][key] = value
            join(small, header, data)
            with pytest.raises(PackedModelError):
                read_model(small)


# ---- errors that verify() finds


@pytest.mark.parametrize("kind", KINDS)
def test_verify_finds_nothing_in_a_valid_model(kind, models):
    assert verify(models[kind]) == []


@pytest.mark.parametrize("name", FILES)
def test_verify_finds_any_flipped_bit(name, ternary):
    rng = np.random.default_rng(1)
    sound = (ternary / name).read_bytes()
    positions = [0, 7, 8, len(sound) - 1, *rng.integers(0, len(sound), size=100).tolist()]
    if name == "model.safetensors":  # half of them in the header
        positions += rng.integers(0, 8 + struct.unpack("<Q", sound[:8])[0], size=100).tolist()

    for position in positions:
        damaged = bytearray(sound)
        damaged[position] ^= 1 << int(rng.integers(8))
        (ternary / name).write_bytes(damaged)
        try:
            problems = verify(ternary)
        except (PackedModelError, ConfigError) as error:
            problems = [str(error)]
        assert problems, position
        assert all(name in problem for problem in problems)


@pytest.mark.parametrize(
    ("invalid", "column"), [(0b01010111, 0), (0b01011101, 32), (0b01110101, 64), (0b11010101, 96)]
)
def test_verify_finds_code_3_with_a_correct_hash(invalid, column, ternary):
    name = "layers.2.ffn.down_proj.weight"
    overwrite(ternary, name, bytes([invalid]))

    problems = verify(ternary)

    assert len(problems) == 1
    found = f"'{name}' must hold codes 0 to 2 but holds 3 at row 0, column {column};"
    assert found in problems[0]


def test_verify_accepts_every_byte_in_sign_weights(models, tmp_path):
    model = Path(shutil.copytree(models["sign"], tmp_path / "model"))
    overwrite(model, "layers.2.ffn.down_proj.weight", bytes([0xFF]))

    assert verify(model) == []


def test_verify_finds_nan_in_dense_weights_with_a_correct_hash(models, tmp_path):
    model = Path(shutil.copytree(models["dense"], tmp_path / "model"))
    overwrite(model, "head.weight", struct.pack("<f", float("nan")))

    problems = verify(model)

    assert len(problems) == 1
    assert "'head.weight' must be finite but holds nan at row 0, column 0;" in problems[0]


def test_verify_finds_a_missing_hash(ternary):
    header, data = split(ternary)
    del header["__metadata__"]["sha256:norm.weight"]
    join(ternary, header, data)

    problems = verify(ternary)

    assert len(problems) == 1
    assert "'norm.weight' must have sha256 None but has" in problems[0]


def test_verify_refuses_a_fifo_in_place_of_the_tokenizer(ternary):
    (ternary / "tokenizer.json").unlink()
    os.mkfifo(ternary / "tokenizer.json")

    with pytest.raises(ConfigError, match=r"tokenizer\.json: must be a regular file"):
        verify(ternary)


def test_verify_finds_a_missing_and_an_unexpected_tokenizer(ternary):
    (ternary / "tokenizer.json").rename(ternary / "elsewhere.json")
    missing = verify(ternary)
    header, data = split(ternary)
    del header["__metadata__"]["tokenizer_sha256"]
    join(ternary, header, data)
    (ternary / "elsewhere.json").rename(ternary / "tokenizer.json")
    unexpected = verify(ternary)

    assert "tokenizer.json: is missing" in missing[0]
    assert "tokenizer.json: must not be there" in unexpected[0]


# ---- summary, and imports without torch


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("cache_type", ["f32", "f16", "int8", "int4"])
def test_summary_equals_the_decoder_and_the_session(config, cache_type, tmp_path):
    model = pack(save_checkpoint(tmp_path, config), tmp_path / "model")

    summary = summarize(model)

    session = _native.Session(engine(model), 1024, cache_type).memory()
    per_token = session["shared_kv_per_token"] + session["full_per_token"]
    assert summary.cache_bytes_per_token[cache_type] == per_token
    assert summary.state_bytes[cache_type] == session["retention"] + session["window"]
    assert summary.parameters == Decoder(config).n_parameters()
    assert sum(summary.parameters_by_part.values()) == summary.parameters


def test_summary_counts_a_transformers_cache_in_every_layer(models, tmp_path):
    config = preset("nano").replace(layers=("full",) * 4)
    transformer = pack(save_checkpoint(tmp_path, config), tmp_path / "model")

    own = summarize(transformer).cache_bytes_per_token

    assert summarize(read_model(models["ternary"])).transformer_cache_bytes_per_token == own


def test_summary_counts_window_positions_with_scales(tmp_path):
    # 2 heads of 32; the window of 16 positions and a prefill chunk of 128, in tiles of 32.
    config = preset("nano").replace(layers=("window",) * 3)
    model = pack(save_checkpoint(tmp_path, config), tmp_path / "model")

    state_bytes = summarize(model).state_bytes

    assert state_bytes["f32"] == 3 * 160 * 2 * 2 * 32 * 4
    assert state_bytes["int8"] == 3 * 160 * 2 * 2 * (32 + 4)


@pytest.mark.parametrize(
    ("layers", "comparison"),
    [
        (("retention", "cross"), "as a Transformer: 2 times as much"),
        (("retention", "retention"), "as a Transformer"),
    ],
)
def test_description_compares_with_a_cache_only_where_there_is_one(layers, comparison, tmp_path):
    config = preset("nano").replace(layers=layers)
    model = pack(save_checkpoint(tmp_path, config), tmp_path / "model")

    assert [line for line in describe(model) if line.endswith(comparison)]


def test_description_names_sparse_attention_only(models):
    model = read_model(models["ternary"])

    assert not [line for line in describe(model) if line.startswith("attention")]
    assert describe(model.attending("index:128"))[-1].startswith("attention   index:128 by default")


@pytest.mark.parametrize(
    ("kind", "code_kind"),
    [("ternary", "2-bit"), ("ternary_row", "2-bit"), ("sign", "1-bit"), ("dense", "f32")],
)
def test_summary_accounts_for_every_byte_of_data(kind, code_kind, models):
    model = read_model(models[kind])

    summary = summarize(model)

    _, data = split(models[kind])
    assert summary.size_bytes == sum(summary.size_bytes_by_kind.values()) == len(data)
    assert summary.size_bytes_by_kind[code_kind] > len(data) // 4
    assert summary.file_bytes == model.file.stat().st_size
    assert summary.bits_per_weight == 8 * len(data) / summary.parameters
    assert json.loads(json.dumps(summary.to_dict()))["parameters"] == summary.parameters


def test_reading_and_verifying_work_without_torch(models):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from yocobit.costs import summarize\n"
        "from yocobit.packing import layout, reader, read_model, verify\n"
        "path = Path(sys.argv[1])\n"
        "summarize(read_model(path))\n"
        "assert verify(path) == []\n"
    )

    subprocess.run([sys.executable, "-c", code, str(models["ternary"])], check=True)


@pytest.mark.parametrize("bits", [0x7E00, 0x7C00, 0xBC00], ids=["nan", "infinite", "negative"])
def test_reader_rejects_a_bad_scale_of_an_int4_head(tmp_path, bits):
    model = pack(save_checkpoint(tmp_path, preset("nano")), tmp_path / "model", head="int4")
    data = bytearray(model.file.read_bytes())
    begin = model.tensors["head.weight_scale"].begin
    data[begin + 20 : begin + 22] = bits.to_bytes(2, "little")
    model.file.write_bytes(data)

    with pytest.raises(PackedModelError, match=r"'head\.weight_scale' must be finite and not neg"):
        read_model(model.path)


def test_pack_rejects_an_int4_head_of_a_dense_model(tmp_path):
    run = save_checkpoint(tmp_path, preset("nano").replace(weights="dense"))

    with pytest.raises(ConfigError, match="head must be int8 for a dense model"):
        pack(run, tmp_path / "model", head="int4")


def test_verify_accepts_an_int4_head(tmp_path):
    model = pack(save_checkpoint(tmp_path, preset("nano")), tmp_path / "model", head="int4")

    assert verify(model.path) == []
    assert summarize(model).size_bytes_by_kind["int4"] == 512 * 64 // 2


def test_directory_that_another_process_writes_meanwhile_is_kept(tmp_path):
    out = tmp_path / "model"

    with (
        pytest.raises(ConfigError, match="model: must not exist or be an empty directory but has"),
        new_directory(out) as first,
    ):
        (first / "a").write_text("first")
        with new_directory(out) as second:  # of a process with the same number, in a container
            (second / "a").write_text("second")

    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (out / "a").read_text() == "second"
