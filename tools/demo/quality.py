"""Several seeds: the KL of planted facts' answers, `signature` against `paper`, and of the text that follows. A seed is a context of its
own, because the tables' directions and the rotations are drawn when a context is made."""

from __future__ import annotations

import statistics

import numpy as np
import torch

import magicpig
import measure
import text
from magicpig.transformers import MagicPigCache, fingerprint, layer_table

SEEDS = range(1, 6)


def facts(run, own: measure.OwnAttention, rows: list, queries: list, arguments) -> dict:
    from phases import PAPER, PROPOSALS

    following = run.tokens.following
    text_own, text_kl = own.logits(following), {}
    asked = {city: text.encode(run.tokenizer, text.question(city)) for city in text.FACTS}
    answers = {city: text.encode(run.tokenizer, text.answer(city)) for city in text.FACTS}
    reference = {city: own.logits(asked[city] + answers[city][:-1])[len(asked[city]) - 1 :] for city in asked}
    kl: dict[str, dict[int, list[float]]] = {name: {} for name in ("window", "signature", "paper")}
    kept: dict[str, list[float]] = {name: [] for name in kl}
    digest = fingerprint(run.model)
    for seed in SEEDS:
        print(f"  facts, seed {seed}", flush=True)
        spec = magicpig.Spec(
            layers=layer_table(run.model, row_dtype=arguments.rows, signature_bits=2, paper=PAPER),
            fingerprint=digest + bytes([seed]),
            seed=seed,
        )
        name = f"facts-{seed}"
        with run.client.create(name, spec) as context, run.client.queue(timeout_ms=600_000) as queue:
            for layer, ((keys, values), recent) in enumerate(zip(rows, queries)):
                keys, values = (x[0].transpose(0, 1).contiguous() for x in (keys, values))
                queue.append(context, layer, 0, keys, values, recent)
            queue.commit(context, 0, run.tokens.context, seal=True)
        for proposal in kl if seed == SEEDS[0] else ("signature", "paper"):
            kl[proposal][seed] = []
            for city in asked:
                options = {**PROPOSALS[proposal], "seed": seed}
                prompt = run.tokens.context + asked[city]
                with MagicPigCache.open(run.client, run.model, prompt, fingerprint=spec.fingerprint, **options) as cache:
                    if cache.length != len(run.tokens.context):
                        raise RuntimeError(f"context {name} was not taken up at its end")
                    logits = forced(run, cache, asked[city], answers[city])
                    kept[proposal].append(cache.stats.kept)
                    cache.crop(len(run.tokens.context))
                kl[proposal][seed] += measure.divergence(reference[city], logits).tolist()
        with MagicPigCache.open(
            run.client, run.model, run.tokens.context + following, fingerprint=spec.fingerprint, **PROPOSALS["signature"], seed=seed
        ) as cache:
            logits = run.model(torch.tensor([following]), past_key_values=cache).logits[0]
            text_kl[seed] = float(measure.divergence(text_own, logits).mean())
        run.client.drop(name)
    means = {name: {seed: float(np.mean(v)) for seed, v in by_seed.items()} for name, by_seed in kl.items()}
    return {
        "facts": len(asked),
        "seeds": len(SEEDS),
        "kl_by_seed": means,
        "kl_mean": {name: statistics.mean(v.values()) for name, v in means.items()},
        "text_kl_by_seed": text_kl,
        "kept": {name: statistics.mean(v) for name, v in kept.items()},
    }


def forced(run, cache, asked: list[int], answer: list[int]) -> torch.Tensor:
    """Logits before each token of the answer, the answer's tokens given one at a time."""
    logits = [run.feed(cache, asked)]
    logits += [run.feed(cache, [token]) for token in answer[:-1]]
    return torch.stack(logits)
