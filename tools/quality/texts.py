"""Five kinds of text, each as many different documents as are asked for: a context, and what follows it and is scored.

prose    the King James bible of Debian's package bible-kjv-text, another part of it for each document
manual   Python's language reference, as `pydoc_data.topics` holds it: prose that nothing was tuned on
code     modules of Python's standard library
facts    prose with 24 numbers planted in it; what is scored asks for them and answers
words    coded words, some of them frequent (Zipf's law); what is scored counts them
"""

from __future__ import annotations

import pathlib
import re
import struct
import subprocess
import sysconfig
import tempfile
from typing import Callable, Iterable, Iterator

import numpy as np

import model_files

KINDS = ("prose", "code", "facts", "words", "manual")  # the order seeds the random numbers
FACTS = 24
_CITIES = (
    "Lisbon Nairobi Toronto Kyoto Helsinki Bogota Lima Cairo Oslo Dublin Vienna Prague Athens Seoul Havana Manila Accra Riga Quito Tunis "
    "Zagreb Ottawa Madrid Warsaw"
).split()

Encode = Callable[[str], list[int]]


def make(kind: str, number: int, encode: Encode, context: int, scored: int, cache: pathlib.Path) -> list[int]:
    """context + scored token ids, without the model's begin-of-text token."""
    random = np.random.default_rng([KINDS.index(kind), number])
    if kind == "facts":
        return _facts(number, random, encode, context, scored, cache)
    if kind == "words":
        return _words(random, encode, context, scored)
    pieces = {"prose": lambda: _verses(number, cache), "code": lambda: _modules(number), "manual": lambda: _topics(number)}[kind]()
    return _take(pieces, encode, context + scored)


def _take(pieces: Iterable[str], encode: Encode, count: int) -> list[int]:
    ids: list[int] = []
    for piece in pieces:
        ids += encode(piece)
        if len(ids) >= count:
            return ids[:count]
    raise ValueError(f"the text has only {len(ids)} tokens, {count} are needed")


# ---- prose


def bible(cache: pathlib.Path) -> list[str]:
    """The verses. The package is fetched by apt (or lies in $MAGICPIG_DATA), not installed; its file is windows of 64 KiB, each compressed by LZW."""
    path = cache / "bible.txt"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            package = next(iter(model_files.given("bible-kjv-text*.deb")), None)
            if package is None:
                subprocess.run(["apt-get", "download", "-q", "bible-kjv-text"], cwd=directory, check=True, capture_output=True)
                package = next(pathlib.Path(directory).glob("bible-kjv-text*.deb"))
            subprocess.run(["dpkg-deb", "-x", package, directory], check=True)
            partial = pathlib.Path(directory) / "bible.txt"
            partial.write_bytes(_unpack((pathlib.Path(directory) / "usr/lib/bible.data").read_bytes()))
            partial.rename(path)
    lines = path.read_text(encoding="latin-1").splitlines()
    return [verse.group(1) for line in lines if (verse := re.match(r"\d?[A-Z]\w*:?\d+:\d+ (.*)", line))]


def _unpack(data: bytes) -> bytes:
    if not data.startswith(b"EC02Compressed Data File"):
        raise ValueError("bible.data is not what it was")
    (count,) = struct.unpack_from(">I", data, 0x58)
    starts = [*struct.unpack_from(f">{count}I", data, 0x5C), len(data)]
    header = data[starts[0] - 3 : starts[0]]  # of LZW (compress): kept once, wanted by each window
    parts = []
    for begin, end in zip(starts, starts[1:]):
        done = subprocess.run(["gzip", "-dc"], input=header + data[begin:end], capture_output=True)
        parts.append(done.stdout)  # gzip grumbles about the padding of the last code
    return b"".join(parts)


def _verses(number: int, cache: pathlib.Path) -> Iterator[str]:
    verses = bible(cache)
    begin = len(verses) * (2 * number + 1) // 17 % len(verses)
    for i in range(begin, begin + len(verses)):
        yield verses[i % len(verses)] + "\n"


# ---- code

_LEAST = 8_000  # bytes of a module


def _modules(number: int) -> Iterator[str]:
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    modules = sorted(path for path in folder.glob("*.py") if path.stat().st_size >= _LEAST)
    begin = (number * 13) % len(modules)
    for path in modules[begin:] + modules[:begin]:
        text = path.read_text(encoding="utf-8", errors="replace")
        for at in range(0, len(text), 4000):
            yield text[at : at + 4000]


# ---- the language reference


def _topics(number: int) -> Iterator[str]:
    from pydoc_data.topics import topics

    names = sorted(topics)
    begin = len(names) * number // 5 % len(names)
    for name in names[begin:] + names[:begin]:
        yield topics[name].strip() + "\n\n"


# ---- planted facts


def _facts(number: int, random: np.random.Generator, encode: Encode, context: int, scored: int, cache: pathlib.Path) -> list[int]:
    numbers = {city: str(random.integers(10_000, 100_000)) for city in random.permutation(_CITIES)}
    verses = _verses(number + 8, cache)
    ids: list[int] = []
    for i, (city, value) in enumerate(numbers.items()):
        while len(ids) < context * (i + 0.5) / (FACTS + 0.5):
            ids += encode(next(verses))
        ids += encode(f"Please remember: the magic number of {city} is {value}.\n")
    while len(ids) < context:
        ids += encode(next(verses))
    asked = list(random.permutation(list(numbers)))
    questions = (f"\nQuestion: What is the magic number of {c}?\nAnswer: The magic number of {c} is {numbers[c]}.\n" for c in asked)
    return ids[:context] + _take(questions, encode, scored)


# ---- counting

_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


def _words(random: np.random.Generator, encode: Encode, context: int, scored: int) -> list[int]:
    words = ["".join(random.choice(_SYLLABLES, 3)) for _ in range(400)]
    share = 1 / np.arange(1, len(words) + 1) ** 1.2
    share /= share.sum()

    def drawn() -> Iterator[str]:
        yield "Read the following coded text and track the frequency of each coded word.\n"
        while True:
            yield " ".join(random.choice(words, 64, p=share)) + "\n"

    ranks = ("most", "second most", "third most", "fourth most", "fifth most", "sixth most", "seventh most", "eighth most")
    answers = (f"\nQuestion: Which coded word is the {r} frequent one?\nAnswer: {w}\n" for r, w in zip(ranks, words))
    return _take(drawn(), encode, context) + _take(answers, encode, scored)
