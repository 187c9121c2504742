"""Texts and the tokenizer by scores, without a model."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import models  # noqa: E402
import texts  # noqa: E402

WORDS = [c for c in "\u2581abcdehlorw\n"] + ["he", "ll", "hell", "hello", "\u2581w", "or", "ld", "\u2581wor", "\u2581world"]
SCORES = [-1e3] * 13 + [-1, -5, -6, -9, -2, -1, -4, -3, -7]


def tokenizer():
    tokens = WORDS + [f"<0x{byte:02X}>" for byte in range(256)]
    return models.ScoreTokenizer(tokens, [*SCORES[: len(WORDS)], *[0.0] * 256]), tokens


def test_pieces_are_joined_by_score():
    encode, tokens = tokenizer()
    assert [tokens[i] for i in encode("hello world")] == ["hello", "\u2581world"]
    assert [tokens[i] for i in encode("hello\nhe")] == ["hello", "\n", "he"]


def test_unknown_characters_become_bytes():
    encode, tokens = tokenizer()
    assert [tokens[i] for i in encode("a\u00e9")] == ["a", "<0xC3>", "<0xA9>"]
    assert encode("") == []


def test_texts_are_as_long_as_asked_and_different(tmp_path):
    (tmp_path / "bible.txt").write_text("".join(f"Ge{c}:{v} And it came to pass {c} {v}.\n" for c in range(1, 200) for v in range(1, 40)))
    encode = lambda piece: list(piece.encode())
    for kind in texts.KINDS:
        first, second = (texts.make(kind, number, encode, 6000, 128, tmp_path) for number in (0, 1))
        assert len(first) == len(second) == 6128 and first != second
        assert first == texts.make(kind, 0, encode, 6000, 128, tmp_path)


def test_every_planted_fact_stands_before_its_question(tmp_path):
    (tmp_path / "bible.txt").write_text("".join(f"Ge{c}:{v} And it came to pass {c} {v}.\n" for c in range(1, 200) for v in range(1, 40)))
    text = bytes(texts.make("facts", 0, lambda piece: list(piece.encode()), 8000, 256, tmp_path)).decode()
    context, scored = text[:8000], text[8000:]
    assert context.count("the magic number of") == texts.FACTS
    city, value = scored.split("The magic number of ")[1].split("\n")[0].split(" is ")
    assert f"the magic number of {city} is {value[:5]}." in context
