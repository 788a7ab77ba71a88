"""Write data/gguf_vocabularies.json: extracts of llama.cpp's vocabulary files (MIT).

    python tests/importers/extract_gguf_vocabularies.py LLAMA_CPP/models

An extract has the tokens that occur in a few of the test texts, and all merges between them, so
these texts have the same tokens as with the whole vocabulary. The expected ids are llama.cpp's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from yocobit.importers.gguf.container import GGUFFile
from yocobit.text.byte_decoder import _BYTES

BPE = ("llama-bpe", "qwen2", "qwen35", "gpt-2", "falcon", "starcoder", "mpt", "deepseek-llm")
SENTENCEPIECE = ("llama-spm", "phi-3")
TEXTS = (
    "ied 4 ½ months",
    "",
    "   ",
    "\n\n\n",
    "\t\n",
    " Hello, world!",
    " this is 🦙.cpp",
    "w048 7tuijk dsdfhu",
    "нещо на Български",
    "    Hello\n    Hello",
    "' era",
    "Hello, y'all! How are you 😁 ?我想在apple工作1314151天～",
    "!!!!!!",
    "3333333",
    "résumé",
    "re\u0301sume\u0301",
)
OUT = Path(__file__).parent / "data" / "gguf_vocabularies.json"
PREFIX = "tokenizer.ggml."


def main(models: Path) -> None:
    extracts = {
        name: extract(models / f"ggml-vocab-{name}.gguf") for name in (*BPE, *SENTENCEPIECE)
    }
    lines = [f"{json.dumps(n)}: {json.dumps(e, ensure_ascii=False)}" for n, e in extracts.items()]
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def extract(file: Path) -> dict:
    metadata = GGUFFile(file).metadata
    cases = [case for case in read_cases(file) if case[0] in TEXTS]
    tokens, types = metadata[f"{PREFIX}tokens"], metadata[f"{PREFIX}token_type"].tolist()
    forms = [spelled(text, metadata) for text, _ in cases]
    special = {i for key, i in metadata.items() if key.endswith("_token_id")}
    special |= {i for i, token in enumerate(tokens) if token in ("<|eot_id|>", "<|im_end|>")}
    ids = [
        i
        for i, token in enumerate(tokens)
        if types[i] == 6
        or i in special
        or any(token in form for form in forms)
        or (types[i] == 4 and any(token in text for text, _ in cases))
    ]
    new_ids = {i: new for new, i in enumerate(ids)}
    kept = {tokens[i] for i in ids}
    merges = [
        merge
        for merge in metadata.get(f"{PREFIX}merges", [])
        if {*merge.split(" "), merge.replace(" ", "")} <= kept
    ]
    scores = metadata.get(f"{PREFIX}scores")
    other = {k: v for k, v in metadata.items() if k.startswith(PREFIX) and type(v) in (str, bool)}
    named = {k: new_ids[i] for k, i in metadata.items() if k.endswith("_token_id")}
    return {
        "metadata": other | named,
        "ids": ids,
        "tokens": [tokens[i] for i in ids],
        "types": [types[i] for i in ids],
        "scores": [] if scores is None else [scores.tolist()[i] for i in ids],
        "merges": merges,
        "cases": cases,
    }


def read_cases(file: Path) -> list[tuple[str, list[int]]]:
    """Return the texts of a vocabulary and their ids."""
    texts = Path(f"{file}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{file}.out").read_text().split("\n")[: len(texts)]
    return [(text, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=True)]


def spelled(text: str, metadata: dict) -> str:
    """Return a text as tokens spell it."""
    if metadata[f"{PREFIX}model"] == "llama":
        return "▁" + text.replace(" ", "▁")
    names = {byte: name for name, byte in _BYTES.items()}
    return "".join(names[byte] for byte in text.encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
