"""Convert prose to conversations: the user names a subject, the reply is a passage about it.

    python benchmarks/quality/conversations.py runs/quality/data/train.jsonl chat.jsonl

The subject of a passage is one or two of its most frequent words; among equally frequent words, the
rarer in the whole text is preferred. In a second turn, the user requests more, and the reply is the
next passage. Equal texts and seeds give equal conversations.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from yocobit.data.documents import read_texts

_FIRST_TURNS = (
    "Tell me about {}.",
    "What can you say about {}?",
    "Speak about {}.",
    "I want to hear about {}.",
    "Write a few sentences about {}.",
    "{}?",
)
_SECOND_TURNS = ("Go on.", "And then?", "Please continue.", "What else?", "Tell me more.")
_WORD = re.compile(r"[A-Za-z][a-z]+(?:-[a-z]+)*")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_WORDS = 20, 90  # bounds for the words of a passage
_KNOWN = 60, 3_000  # bounds for occurrences of a subject in the whole text
_SHARE_OF_TWO_TURNS = 0.3


def passages(text: str) -> Iterator[str]:
    """Yield the passages of a document: whole sentences, up to the length of a reply."""
    held: list[str] = []
    n_words = 0
    for sentence in _SENTENCE.split(" ".join(text.split())):
        length = sentence.count(" ") + 1
        if held and n_words + length > _WORDS[1]:
            yield " ".join(held)
            held, n_words = [], 0
        held.append(sentence)
        n_words += length
    if held:
        yield " ".join(held)


def subject_of(passage: str, counts: Counter[str], random_: random.Random) -> str | None:
    """Return the subject of a passage, or None if no word is frequent enough."""
    here = Counter(word for word in _WORD.findall(passage) if len(word) > 3)
    known = [word for word in here if _KNOWN[0] <= counts[word] <= _KNOWN[1]]
    candidates = sorted(known, key=lambda word: (-here[word], counts[word], word))[:3]
    if not candidates:
        return None
    words = random_.sample(candidates, min(len(candidates), random_.choice((1, 1, 2))))
    return " and ".join(words)


def conversations(texts: list[str], seed: int) -> Iterator[list[dict[str, str]]]:
    """Yield conversations, document by document."""
    counts = Counter(word for text in texts for word in _WORD.findall(text))
    random_ = random.Random(seed)
    for text in texts:
        found = (passage for passage in passages(text) if _fits(passage))
        for passage in found:
            subject = subject_of(passage, counts, random_)
            if subject is None:
                continue
            messages = [_user(random_.choice(_FIRST_TURNS).format(subject)), _assistant(passage)]
            if random_.random() < _SHARE_OF_TWO_TURNS:
                for next_passage in islice(found, 1):
                    messages += [_user(random_.choice(_SECOND_TURNS)), _assistant(next_passage)]
            yield messages


def _fits(passage: str) -> bool:
    return _WORDS[0] <= passage.count(" ") + 1 <= 2 * _WORDS[1]


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", metavar="TRAIN.jsonl", type=Path)
    parser.add_argument("out", metavar="OUT.jsonl", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    texts = list(read_texts([arguments.text]))
    with arguments.out.open("w", encoding="utf-8") as file:
        for messages in conversations(texts, arguments.seed):
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
