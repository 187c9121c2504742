"""The two model processes of the demo. Each talks to the daemon alone; what it finds out goes to the driver as JSON lines."""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import sys
import time

import numpy as np
import torch

import checkpoint
import magicpig
import measure
import quality
import text
from magicpig.transformers import MagicPigCache, register

CONTEXT = "python-reference"
PAPER = (10, 150)  # K, L
PROPOSALS = {
    "window": dict(proposal="window"),
    "dense": dict(proposal="dense"),
    "signature": dict(proposal="signature", budget=0.01),
    "paper": dict(proposal="paper"),
}
RANDOM = ("signature",)  # draws rows for every request; the tables of `paper` are drawn once per context
SEEDS = (1, 2, 3, 4)     # of requests
FOLLOWING = 64   # teacher-forced tokens
CHUNK = 512      # of the prefill
ANSWER_TOKENS = 12
CITIES = ("Lisbon", "Kyoto")  # asked of process A, of process B


class Bar:
    """A progress bar; one line per tenth where the output is not a terminal."""

    def __init__(self, what: str, total: int):
        self.what, self.total, self.begin, self.shown = what, total, time.monotonic(), -1

    def __call__(self, done: int) -> None:
        seconds = max(1e-3, time.monotonic() - self.begin)
        line = f"  {self.what} {done:5d}/{self.total} tokens, {seconds:5.1f} s"
        tenth = done * 10 // self.total
        if sys.stdout.isatty():
            filled = done * 30 // self.total
            print(f"\r{line} [{'#' * filled}{'.' * (30 - filled)}]", end="\n" if done == self.total else "", flush=True)
        elif tenth > self.shown:
            print(line, flush=True)
        self.shown = tenth


class Run:
    """What both processes begin with."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.events = os.fdopen(arguments.events, "w", buffering=1)
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.model, self.tokenizer = checkpoint.load(arguments.model)
        register(self.model)
        self.tokens = text.make(self.tokenizer, arguments.tokens, FOLLOWING)
        self.client = magicpig.Client(str(arguments.socket))

    def tell(self, event: str, **values) -> None:
        self.events.write(json.dumps({"event": event, **values}) + "\n")

    def decoding(self) -> None:
        """While decoding one core belongs to the daemon."""
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))

    def feed(self, cache, ids: list[int]) -> torch.Tensor:
        """One forward pass; the logits after its last token."""
        return self.model(torch.tensor([ids]), past_key_values=cache, logits_to_keep=1).logits[0, -1]

    def text_of(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


# ---- process A: prefill, answer, decode on until killed


def process_a(arguments) -> None:
    run = Run(arguments)
    ids = run.tokens.context
    cache = MagicPigCache(
        run.client, run.model, CONTEXT, row_dtype=arguments.rows, signature_bits=2, paper=PAPER, context_seed=1,
        expected_tokens=len(ids), **PROPOSALS["signature"],
    )
    bar, begin = Bar("prefill", len(ids)), time.monotonic()
    for at in range(0, len(ids), CHUNK):
        run.feed(cache, ids[at : at + CHUNK])
        bar(min(len(ids), at + CHUNK))
    model_s = time.monotonic() - begin
    rows = [layer.rows.view() for layer in cache.layers]  # everything, as long as the cache is not sealed
    queries = [layer.recent_queries for layer in cache.layers]
    own = measure.OwnAttention(run.model, rows)
    np.save(arguments.work / "own.npy", own.logits(run.tokens.following).numpy())
    own_answers = {
        city: run.text_of(own.greedy(text.encode(run.tokenizer, text.question(city)), ANSWER_TOKENS)) for city in CITIES
    }
    begin = time.monotonic()
    cache.seal()
    seal_s = time.monotonic() - begin
    print(f"  committed and indexed in {seal_s:.1f} s; {cache.layers[0].rows.count} rows per layer stay in this process", flush=True)
    run.tell("prefilled", prefill_s=model_s + seal_s, model_s=model_s, seal_s=seal_s, own_answers=own_answers)
    run.decoding()
    if arguments.quality:
        run.tell("quality", **quality.facts(run, own, rows, queries, arguments))
    del own, rows, queries
    answer_and_go_on(run, cache)


def answer_and_go_on(run: Run, cache: MagicPigCache) -> None:
    """Answers a question and keeps decoding: the driver kills this process when it has seen enough."""
    city = CITIES[0]
    following = int(run.feed(cache, text.encode(run.tokenizer, text.question(city))).argmax())
    answer: list[int] = []
    for step in range(run.arguments.tokens):
        answer.append(following)
        if step == ANSWER_TOKENS:
            run.tell("answer", city=city, text=run.text_of(answer[:ANSWER_TOKENS]))
        if step >= ANSWER_TOKENS:
            run.tell("token", beyond=len(answer) - ANSWER_TOKENS)
        following = int(run.feed(cache, [following]).argmax())


# ---- process B: reopen, answer, compare


def process_b(arguments) -> None:
    run = Run(arguments)
    run.decoding()
    city = CITIES[1]
    prompt = run.tokens.context + text.encode(run.tokenizer, text.question(city))
    begin = time.monotonic()
    cache = MagicPigCache.open(run.client, run.model, prompt, fork_name="question", **PROPOSALS["signature"])
    reopen_s = time.monotonic() - begin
    matched = cache.get_seq_length()
    out = run.model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), past_key_values=cache,
        max_new_tokens=ANSWER_TOKENS, do_sample=False, pad_token_id=run.tokenizer.eos_token_id,
    )
    run.tell("reopened", reopen_s=reopen_s, matched=matched, city=city, text=run.text_of(out[0, len(prompt) :].tolist()))
    cache.close()
    own = torch.from_numpy(np.load(arguments.work / "own.npy"))
    following = run.tokens.following
    cache = MagicPigCache.open(run.client, run.model, run.tokens.context + following, fork_name="evaluation")
    assert cache.get_seq_length() == len(run.tokens.context)
    results = {name: evaluate(run, cache, name, own, following) for name in PROPOSALS}
    cache.close()
    run.client.drop("question")
    run.client.drop("evaluation")
    run.tell("evaluated", proposals=results, index=index_sizes(run))


def evaluate(run: Run, cache: MagicPigCache, name: str, own: torch.Tensor, following: list[int]) -> dict:
    """The decode path, one token at a time, over the same tokens as the model's own attention; then, for proposals that draw
    rows anew for every request, all tokens in one pass for each further seed. (A pass over several tokens attends to the
    same rows as single steps do: the window moves in strides, and the draws depend on the position.)"""
    for option, value in {"budget": 0.0, "seed": SEEDS[0], **PROPOSALS[name]}.items():
        setattr(cache.options, option, value)
    cache.stats.reset()
    bar, logits, times = Bar(f"{name:9s}", len(following)), [], []
    for n, token in enumerate(following):
        begin = time.monotonic()
        logits.append(run.feed(cache, [token]))
        times.append(time.monotonic() - begin)
        if sys.stdout.isatty() or n + 1 == len(following):
            bar(n + 1)
    cache.crop(len(run.tokens.context))
    by_seed = [torch.stack(logits)]
    for seed in SEEDS[1:] if name in RANDOM else ():
        cache.options.seed = seed
        by_seed.append(run.model(torch.tensor([following]), past_key_values=cache).logits[0])
        cache.crop(len(run.tokens.context))
    stats = cache.stats
    return {
        **measure.summary(own.repeat(len(by_seed), 1), torch.cat(by_seed)),
        "kl_mean_by_seed": [measure.summary(own, one)["kl_mean"] for one in by_seed],
        "kept": stats.kept,
        "exact_rows": stats.exact_rows / stats.head_tokens,
        "bytes_read": stats.bytes_read / stats.tokens,
        "ms_per_token": 1e3 * statistics.median(times),
    }


def index_sizes(run: Run) -> dict:
    """Index bytes per row of a strip: of the whole context, and of each kind of index by itself (in contexts of one layer
    that hold the same rows)."""
    info, table = run.client.info(CONTEXT), run.client.layers(CONTEXT)
    strips = sum(layer.kv_heads for layer in table if layer.kind == "global")
    sizes = {"both": info.index_bytes / (info.indexed * strips), "rows_bytes_per_row": info.rows_bytes / (info.committed * strips)}
    tokens = run.tokens.context
    with run.client.open(CONTEXT) as whole, run.client.queue() as queue:
        k, v = queue.read(whole, 0, 0, len(tokens))
        for name, spec in {"signature": dict(signature_bits=2), "paper": dict(paper=PAPER)}.items():
            first = table[0]
            layer = magicpig.Layer(query_heads=first.query_heads, kv_heads=first.kv_heads, d_k=first.d_k, **spec)
            with run.client.create(f"index-{name}", magicpig.Spec([layer])) as context:
                queue.append(context, 0, 0, k, v)
                queue.commit(context, 0, tokens, seal=True)
                one = context.info()
                sizes[name] = one.index_bytes / (one.indexed * first.kv_heads)
            run.client.drop(f"index-{name}")
    return sizes
