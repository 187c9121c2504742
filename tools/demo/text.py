"""What the demo reads: the language reference that comes with every Python, with a few facts planted in it."""

from __future__ import annotations

from dataclasses import dataclass
from pydoc_data.topics import topics

FACTS = {
    "Lisbon": "58213",
    "Nairobi": "40967",
    "Toronto": "73154",
    "Kyoto": "91628",
    "Helsinki": "26485",
    "Bogota": "84390",
}


def fact(city: str) -> str:
    return f"Please remember: the magic number of {city} is {FACTS[city]}."


def question(city: str) -> str:
    return f"\n\nQuestion: What is the magic number of {city}?\nAnswer: The magic number of {city} is"


def answer(city: str) -> str:
    return f" {FACTS[city]}."


@dataclass
class Tokens:
    context: list[int]   # what is prefilled
    following: list[int] # the text that follows it, for teacher forcing


def make(tokenizer, context_tokens: int, following_tokens: int) -> Tokens:
    """The text cut to `context_tokens`, facts spread evenly over its paragraphs, and what follows."""
    paragraphs = [p for name in sorted(topics) for p in topics[name].split("\n\n") if p.strip()]
    ids, taken = [], 0
    # The facts' own tokens shift the cut by a few hundred; where a fact goes depends on the tokens before it alone.
    spacing = context_tokens // (len(FACTS) + 1)
    waiting = list(FACTS)
    while len(ids) < context_tokens + following_tokens:
        if taken == len(paragraphs):
            raise ValueError(f"pydoc_data.topics has only {len(ids)} tokens, {context_tokens + following_tokens} are needed")
        if waiting and len(ids) >= spacing * (len(FACTS) - len(waiting) + 1):
            piece = fact(waiting.pop(0))
        else:
            piece, taken = paragraphs[taken], taken + 1
        ids += tokenizer(piece + "\n\n", add_special_tokens=not ids).input_ids
    if waiting:
        raise ValueError(f"no room for the facts about {', '.join(waiting)}: the context is too short")
    return Tokens(ids[:context_tokens], ids[context_tokens : context_tokens + following_tokens])


def encode(tokenizer, piece: str) -> list[int]:
    """A piece that continues a text."""
    return tokenizer(piece, add_special_tokens=False).input_ids
