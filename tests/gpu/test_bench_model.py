"""bench_model.py runs from end to end over the driver without a GPU, on a tiny shape. Its figures are complete; what they are
means nothing there."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

TREE = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("MAGICPIG_BUILD", TREE / "build")).resolve()


def bench(tmp_path, *arguments: str) -> list:
    pytest.importorskip("torch")
    if not (BUILD / "tests" / "gpu" / "fake" / "libmagicpig-cuda.so.0").exists():
        pytest.skip("the GPU's side over the driver without a GPU is not built")
    program, figures = TREE / "tests" / "gpu" / "bench_model.py", tmp_path / "figures.json"
    command = [sys.executable, program, "--tiny", "--build", BUILD, "--json", figures]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("MAGICPIG_CUDA_LIBRARY", None)
    result = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(figures.read_text())["figures"]


def test_stages_add_up_to_a_token(tmp_path):
    figures = bench(tmp_path, "decode")
    value = {figure["name"].strip(): figure["value"] for figure in figures}
    stages = ("matrix products", "norms, RoPE, activation, own K and V", "signature and submission")
    stages += ("own rows, before the daemon is asked", "the daemon, from claim to completion", "the rest: doorbell, completion, merge")
    assert sum(value[name] for name in stages) == pytest.approx(value["a token"])
    assert 0 < value["rows read of a KV head and layer"] < 8192 and value["the daemon, from claim to completion"] > 0


def test_every_way_of_full_attention_agrees_before_it_is_timed(tmp_path):
    figures = bench(tmp_path, "dense")
    timed = [figure for figure in figures if "ways" in figure]
    assert [figure["name"] for figure in timed] == ["1024 tokens, batch 1", "1024 tokens, batch 2"]
    for figure in timed:
        assert "flash" in figure["ways"] and "products in 64 pieces" in figure["ways"] and "cuDNN" not in figure["ways"]
