"""A MagicPigCache whose steps a GPU makes by itself: against the model's own attention, against the host's path, and while its daemon dies."""

import os
import time

import pytest
import torch

import magicpig
from magicpig.transformers import MagicPigCache, register
from test_transformers import (
    PROMPT, STEPS, check_generate, check_sliding_layers_and_soft_cap, make_gemma2, make_llama, opening, own_logits, run,
)  # fmt: skip

OPTIONS = dict(proposal="dense", row_dtype="f16", window=16, sinks=4, gpu=True, gpu_timeout_ms=20_000)
HOST = {**OPTIONS, "gpu": False}


@pytest.fixture(scope="module")
def daemon(start_daemon, gpu_operators):
    with start_daemon("pytest-gpu", pool_size="256M") as daemon:
        yield daemon


@pytest.fixture
def connect(daemon):
    made = []

    def connect():
        made.append(magicpig.Client(str(daemon.socket), reconnect_ms=60_000))
        return made[-1]

    yield connect
    for client in made:
        client.close()
    with magicpig.Client(str(daemon.socket)) as client:
        for info in list(client.contexts()):
            client.drop(info.name)


@pytest.fixture(scope="module")
def llama(device):
    return make_llama().to(device)


@pytest.fixture(scope="module")
def ids(device):
    return torch.randint(0, 199, (1, PROMPT + STEPS), generator=torch.Generator().manual_seed(3)).to(device)


CHUNKINGS = [
    [PROMPT] + [1] * STEPS,
    [128, 128, PROMPT - 256] + [1] * STEPS,
    [200] + [1] * 3 + [97] + [1] * (STEPS - 10) + [2, 8],  # the GPU's steps, then a continued prompt, and again
    [2] + [1] * 48,                                        # from a context shorter than the sinks on
]


@pytest.mark.parametrize("chunks", CHUNKINGS, ids=range(len(CHUNKINGS)))
def test_dense_equals_own_attention(connect, llama, ids, chunks):
    ids = ids[:, : sum(chunks)]
    with MagicPigCache(connect(), llama, "dense", **OPTIONS) as cache:
        logits = run(llama, cache, ids, chunks)
        expected = own_logits(llama, ids, "sdpa")
        assert (logits - expected).abs().max() < 2e-3 * expected.abs().max()
        assert cache.get_seq_length() == ids.shape[1]
        singles = sum(n == 1 for n in chunks)
        assert cache.gpu.gpu.last_answer().sequence >= 3 * (singles - 20)  # the GPU asked, a layer a step
        assert ids.shape[1] - 3 * 8 <= cache.context.committed  # not far behind
        cache.flush()
        assert cache.context.committed == ids.shape[1] == cache.committed
        visible = cache.stats.rows_visible + cache.stats.exact_rows
        assert visible > 0 and cache.stats.head_tokens == 3 * 4 * cache.stats.tokens


def test_it_is_the_host_path_to_rounding(connect, llama, ids):
    chunks = [PROMPT] + [1] * STEPS
    logits = {}
    for name, options in {"host": HOST, "gpu": OPTIONS}.items():
        with MagicPigCache(connect(), llama, name, context_seed=1, **options) as cache:
            logits[name] = run(llama, cache, ids, chunks)
    assert (logits["host"] - logits["gpu"]).abs().max() < 1e-4 * logits["host"].abs().max()


def test_rows_by_error(connect, llama, ids):
    """The default. Of so short a context all rows are read; what the client has itself is attended first."""
    with MagicPigCache(connect(), llama, "error", **{**OPTIONS, "proposal": "default"}) as cache:
        logits = run(llama, cache, ids, [PROMPT] + [1] * STEPS)
        expected = own_logits(llama, ids, "sdpa")
        assert (logits - expected).abs().max() < 2e-3 * expected.abs().max()
        assert all(attention.plan.own_first for attention in cache.gpu._attention.values())
        cache.crop(PROMPT)
        step = cache.graph(llama)
        graph = torch.stack([step(ids[:, n : n + 1])[0].clone() for n in range(PROMPT, PROMPT + STEPS)])
        assert (graph - expected[PROMPT:]).abs().max() < 2e-3 * expected.abs().max()


def test_without_the_daemons_rows_it_differs(connect, llama, ids):
    """The comparisons can fail."""
    with MagicPigCache(connect(), llama, "sampled", **{**OPTIONS, "proposal": "uniform", "budget": 0.02}) as cache:
        logits = run(llama, cache, ids, [PROMPT] + [1] * STEPS)
        expected = own_logits(llama, ids, "sdpa")
        assert (logits[PROMPT:] - expected[PROMPT:]).abs().max() > 0.02 * expected.abs().max()
        assert not logits.isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(connect, device, ids, dtype):
    model = make_llama().to(device, dtype)
    with MagicPigCache(connect(), model, "half", **{**OPTIONS, "row_dtype": "bf16"}) as cache:
        logits = run(model, cache, ids, [PROMPT] + [1] * STEPS)
        expected = own_logits(model, ids, "sdpa")
        assert logits.dtype == dtype
        assert (logits - expected).abs().max() < 4e-2 * expected.abs().max()


def test_mixed_precision(connect, device, ids):
    """Parameters in one dtype, and keys and values, by autocast, in another."""
    model = make_llama().to(device)
    with MagicPigCache(connect(), model, "mixed", **{**OPTIONS, "row_dtype": "bf16"}) as cache:
        with torch.autocast(device.type, torch.bfloat16):
            logits = run(model, cache, ids, [PROMPT] + [1] * STEPS)
            expected = own_logits(model, ids, "sdpa")
        assert cache.gpu.holds and (logits - expected).abs().max() < 4e-2 * expected.abs().max()


def test_a_learned_logit(connect, llama, ids, device):
    """One that takes mass and has no value, as in models with s_aux."""
    with MagicPigCache(connect(), llama, "sink", **OPTIONS) as cache:
        run(llama, cache, ids[:, : PROMPT + 1], [PROMPT, 1])
        q = torch.randn(1, 4, 1, 64, generator=torch.Generator().manual_seed(1)).to(device)
        logit = torch.tensor([-1.0, 0.0, 5.0, 9.0], device=device)
        k, v = cache.gpu._rings[1]
        out, lse = cache.gpu._attention[1](q.transpose(1, 2), k[None], v[None], cache.gpu.split, cache.gpu.rows, ring_rows=cache.gpu.ring_rows)
        theirs = cache.gpu.attend(1, q, logit)
        share = torch.exp(lse - torch.logaddexp(lse, logit))[..., None]
        assert (theirs - out * share).abs().max() < 1e-5 and share.min() < 0.5 < share.max()


def test_sliding_layers_and_soft_cap(connect, device, ids):
    check_sliding_layers_and_soft_cap(connect, make_gemma2().to(device), ids, OPTIONS)


def test_generate(connect, llama, ids):
    check_generate(connect, llama, ids, OPTIONS, also=lambda cache: cache.gpu.holds)


def test_reopening_continues_the_same(connect, llama, ids):
    with MagicPigCache(connect(), llama, "book", **OPTIONS) as cache:
        run(llama, cache, ids[:, : PROMPT + 1], [PROMPT, 1])
        expected = run(llama, cache, ids[:, PROMPT + 1 :], [1] * (STEPS - 1))
    for options in (OPTIONS, HOST):  # closing has committed all
        with MagicPigCache.open(connect(), llama, ids[0, : PROMPT + 2], fork_name="branch", **opening(options)) as cache:
            assert (cache.context.name, cache.get_seq_length()) == ("branch", PROMPT + 1)
            again = run(llama, cache, ids[:, PROMPT + 1 :], [1] * (STEPS - 1))
            assert (again - expected).abs().max() < 2e-3 * expected.abs().max()
        connect().drop("branch")


def test_crop_goes_back(connect, llama, ids):
    with MagicPigCache(connect(), llama, "crop", **OPTIONS) as cache:
        logits = run(llama, cache, ids, [PROMPT] + [1] * STEPS)
        cache.crop(PROMPT - 20)
        assert cache.length == PROMPT - 20 == cache.context.committed
        again = run(llama, cache, ids[:, PROMPT - 20 :], [16, 4] + [1] * STEPS)
        assert (again[20:] - logits[PROMPT:]).abs().max() < 2e-3 * logits.abs().max()
        cache.crop(-1)  # within what is not committed yet
        again = run(llama, cache, ids[:, -1:], [1])
        assert (again[-1] - logits[-1]).abs().max() < 2e-3 * logits.abs().max()


def test_a_failed_step_is_forgotten(connect, llama, ids):
    with MagicPigCache(connect(), llama, "failed", **OPTIONS) as cache:
        run(llama, cache, ids[:, : PROMPT + 1], [PROMPT, 1])

        def fail(*_):
            raise KeyboardInterrupt

        handle = llama.model.layers[1].mlp.register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            llama(ids[:, PROMPT + 1 : PROMPT + 2], past_key_values=cache)
        handle.remove()
        logits = run(llama, cache, ids[:, PROMPT + 1 :], [1] * (STEPS - 1))
        expected = own_logits(llama, ids, "sdpa")[PROMPT + 1 :]
        assert (logits - expected).abs().max() < 2e-3 * expected.abs().max()


def test_padding_is_refused(connect, llama, ids, device):
    with MagicPigCache(connect(), llama, "padded", **OPTIONS) as cache:
        run(llama, cache, ids[:, : PROMPT + 1], [PROMPT, 1])
        mask = torch.ones(1, PROMPT + 2, dtype=torch.long, device=device)
        step = ids[:, PROMPT + 1 : PROMPT + 2]
        expected = own_logits(llama, ids[:, : PROMPT + 2], "sdpa")[-1]
        mask[0, 3] = 0
        with pytest.raises(ValueError, match="padding"), torch.no_grad():
            llama(step, attention_mask=mask, past_key_values=cache)
        mask[0, 3] = 1
        with torch.no_grad():
            logits = llama(step, attention_mask=mask, past_key_values=cache).logits[0, -1]
        assert (logits - expected).abs().max() < 2e-3 * expected.abs().max()


def test_nothing_waits_within_a_step(connect, llama, ids, device):
    """torch itself says so: whatever would make the host wait for the GPU is an error from the first layer to the last."""
    if device.type != "cuda":
        pytest.skip("the host and the GPU are one here")
    with MagicPigCache(connect(), llama, "steps", **OPTIONS) as cache:
        run(llama, cache, ids[:, : PROMPT + 1], [PROMPT, 1])
        forbid = llama.model.embed_tokens.register_forward_pre_hook(lambda *_: torch.cuda.set_sync_debug_mode("error"))
        allow = llama.model.norm.register_forward_hook(lambda *_: torch.cuda.set_sync_debug_mode("default"))
        try:
            mask = torch.ones(1, PROMPT + STEPS, dtype=torch.long, device=device)
            for at in range(PROMPT + 1, PROMPT + STEPS):
                with torch.no_grad():
                    llama(ids[:, at : at + 1], attention_mask=mask[:, : at + 1], past_key_values=cache)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            forbid.remove()
            allow.remove()


def test_small_windows(connect, llama, ids):
    """A window that does not cover what is on its way: rows are committed before they are asked for."""
    with MagicPigCache(connect(), llama, "small", **{**OPTIONS, "window": 1, "sinks": 0}) as cache:
        logits = run(llama, cache, ids, [PROMPT] + [1] * STEPS)
        expected = own_logits(llama, ids, "sdpa")
        assert (logits - expected).abs().max() < 2e-3 * expected.abs().max()


def test_a_graph(connect, llama, ids):
    """Captured once, where there is a GPU; the window moves meanwhile, and other steps come between."""
    expected = own_logits(llama, ids, "sdpa")
    far = 2e-3 * expected.abs().max()
    with MagicPigCache(connect(), llama, "graph", **OPTIONS) as cache:
        run(llama, cache, ids[:, :200], [200])
        ids, expected = ids[:, :250], expected[:250]
        step = cache.graph(llama)
        for at in range(200, 230):
            assert (step(ids[:, at : at + 1])[0] - expected[at]).abs().max() < far
        assert (run(llama, cache, ids[:, 230:234], [1, 2, 1]) - expected[230:234]).abs().max() < far
        for at in range(234, ids.shape[1]):
            assert (step(ids[:, at : at + 1])[0] - expected[at]).abs().max() < far
        cache.flush()
        assert cache.length == ids.shape[1] == cache.context.committed
        with pytest.raises(ValueError, match="one token"):
            step(ids[:, :2])
    with MagicPigCache(connect(), llama, "empty", **OPTIONS) as cache:
        with pytest.raises(ValueError, match="run the model on its prompt"):
            cache.graph(llama)(ids[:, :1])
    with MagicPigCache(connect(), llama, "host", **HOST) as cache:
        with pytest.raises(ValueError, match="gpu=True"):
            cache.graph(llama)


@pytest.mark.parametrize("place", ["between pieces", "before the seal"])
def test_killed_in_a_prompt(connect, daemon, llama, ids, place):
    with MagicPigCache(connect(), llama, "calm", context_seed=1, **OPTIONS) as cache:
        expected = run(llama, cache, ids[:, : PROMPT + 4], [100, 120, PROMPT - 220, 1, 1, 1, 1])
    with MagicPigCache(connect(), llama, "killed", context_seed=1, **OPTIONS) as cache:
        logits = [run(llama, cache, ids[:, :220], [100, 120])]
        if place == "between pieces":
            daemon.kill_and_restart()
        logits.append(run(llama, cache, ids[:, 220:PROMPT], [PROMPT - 220]))
        if place == "before the seal":
            daemon.kill_and_restart()
        logits.append(run(llama, cache, ids[:, PROMPT : PROMPT + 4], [1, 1, 1, 1]))
        assert (torch.cat(logits) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_compiled_graph(connect, device, ids, dtype):
    """The whole model in one piece, by torch.compile, then captured: compiled once."""
    if device.type == "cpu" and dtype != torch.float32:
        pytest.skip("another dtype is compiled on a GPU")
    model = make_llama().to(device, dtype)
    expected = own_logits(model, ids, "sdpa")
    far = (2e-3 if dtype == torch.float32 else 4e-2) * expected.abs().max()
    counters = torch._dynamo.utils.counters
    with MagicPigCache(connect(), model, "compiled", **{**OPTIONS, "row_dtype": "bf16" if dtype == torch.bfloat16 else "f16"}) as cache:
        run(model, cache, ids[:, :PROMPT], [PROMPT])
        torch._dynamo.reset()
        counters.clear()
        step = cache.graph(model, compiled=True if device.type == "cuda" else {"backend": "aot_eager"})
        for at in range(PROMPT, PROMPT + STEPS):
            assert (step(ids[:, at : at + 1])[0] - expected[at]).abs().max() < far
        assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
        torch._dynamo.reset()


def test_compiled_with_breaks(connect, llama, ids):
    """torch.compile of the model as people do it: attention is left out, and nothing is compiled again for each token."""
    expected = own_logits(llama, ids, "sdpa")
    counters = torch._dynamo.utils.counters
    with MagicPigCache(connect(), llama, "breaks", **OPTIONS) as cache, torch.no_grad():
        run(llama, cache, ids[:, :PROMPT], [PROMPT])
        torch._dynamo.reset()
        counters.clear()
        compiled = torch.compile(llama, backend="aot_eager")
        made = []
        for at in range(PROMPT, PROMPT + 6):
            logits = compiled(ids[:, at : at + 1], past_key_values=cache, use_cache=True).logits[0, -1]
            assert (logits - expected[at]).abs().max() < 2e-3 * expected.abs().max()
            made.append(counters["stats"]["unique_graphs"])
        assert made[2] == made[-1]
        torch._dynamo.reset()


def test_a_graph_whose_daemon_dies(connect, daemon, llama, ids):
    expected = own_logits(llama, ids, "sdpa")
    with MagicPigCache(connect(), llama, "graph", **{**OPTIONS, "gpu_timeout_ms": 500}) as cache:
        run(llama, cache, ids[:, :PROMPT], [PROMPT])
        step = cache.graph(llama)
        for at in range(PROMPT, PROMPT + STEPS):
            if at == PROMPT + 4:
                daemon.kill_and_restart()
            elif at == PROMPT + 8:
                advance = cache.gpu.begin

                def begin_and_die(ids):
                    cache.gpu.begin = advance
                    advance(ids)
                    daemon.kill_and_restart()

                cache.gpu.begin = begin_and_die
            logits = step(ids[:, at : at + 1])[0]
            assert (logits - expected[at]).abs().max() < 2e-3 * expected.abs().max()
        assert cache.stats.repeated >= 1


def test_when_it_cannot(connect, llama, monkeypatch, tmp_path):
    monkeypatch.setenv("MAGICPIG_CUDA_LIBRARY", str(tmp_path / "none.so"))
    monkeypatch.setattr("magicpig._cuda._library", None)
    with pytest.raises(ImportError, match="MAGICPIG_CUDA_LIBRARY"):
        MagicPigCache(connect(), llama, "x", **OPTIONS)
    if next(llama.parameters()).device.type == "cuda":
        with pytest.warns(RuntimeWarning, match="host memory.*MAGICPIG_CUDA_LIBRARY"):
            MagicPigCache(connect(), llama, "y", **{**OPTIONS, "gpu": None}).close()
    with pytest.raises(ValueError, match="float64, not float32"):
        MagicPigCache(connect(), make_llama().double().to(next(llama.parameters()).device), "z", **OPTIONS)
    with pytest.raises(ValueError, match="gpu_timeout_ms"):
        MagicPigCache(connect(), llama, "w", **{**OPTIONS, "gpu_timeout_ms": -1})
    with pytest.raises(ValueError, match="is on meta"):
        MagicPigCache(connect(), make_llama().to("meta"), "v", fingerprint=b"x", **OPTIONS)


# ---- a daemon that goes away -----------------------------------------------------------------------------------------------


@torch.no_grad()
def decode(model, cache, prompt, at_step=lambda step: None):
    last = model(prompt, past_key_values=cache, use_cache=True).logits[0, -1]
    said, logits = [], []
    for step in range(24):
        token = last.argmax()
        at_step(step)
        last = model(token.view(1, 1), past_key_values=cache, use_cache=True).logits[0, -1]
        said.append(int(token))
        logits.append(last)
    return said, torch.stack(logits)


class Trouble:
    """Does something to the daemon at one place of one step."""

    def __init__(self, daemon, model, place, step=11):
        self.daemon, self.place, self.step, self.now, self.done = daemon, place, step, None, 0
        self.handle = model.model.layers[1].register_forward_hook(self.in_a_layer)

    def at_step(self, step):
        self.now = step
        if step == self.step and self.place == "between steps":
            self.kill()

    def in_a_layer(self, *_):
        if self.now == self.step and not self.done:
            if self.place == "in a step":
                self.kill()
            elif self.place == "stands still":
                self.done += 1
                self.daemon.freeze()
                os.system(f"(sleep 1.5; kill -CONT {self.daemon.process.pid}) &")

    def kill(self):
        self.done += 1
        self.daemon.kill_and_restart()


@pytest.mark.parametrize("place", ["between steps", "in a step", "stands still"])
@pytest.mark.parametrize("make", [make_llama, make_gemma2])
def test_a_daemon_in_trouble(connect, daemon, device, ids, place, make, step=11):
    model = make().to(device)
    register(model)
    options = {**OPTIONS, "gpu_timeout_ms": 500}
    with MagicPigCache(connect(), model, "calm", context_seed=1, **options) as cache:
        said, logits = decode(model, cache, ids[:, :PROMPT])
    with MagicPigCache(connect(), model, "troubled", context_seed=1, **options) as cache:
        trouble = Trouble(daemon, model, place, step)
        again, logits_again = decode(model, cache, ids[:, :PROMPT], trouble.at_step)
        trouble.handle.remove()
        assert trouble.done == 1
        assert cache.stats.repeated or place == "between steps"
        assert again == said and torch.equal(logits, logits_again)  # to the last bit
        cache.flush()
        assert cache.length == PROMPT + 24 == cache.context.committed


@pytest.mark.parametrize("step", [8, 9, 10])
def test_killed_while_rows_are_on_their_way(connect, daemon, device, ids, step):
    """Fetched, about to be appended, and just committed."""
    test_a_daemon_in_trouble(connect, daemon, device, ids, "in a step", make_llama, step)


def test_no_successor(start_daemon, gpu_operators, llama, ids):
    """When no daemon comes back, that is said; nothing hangs."""
    with start_daemon("pytest-gone", pool_size="256M") as own:
        with magicpig.Client(str(own.socket), reconnect_ms=200) as client:
            begin = time.monotonic()
            with pytest.raises(magicpig.NoDaemon, match="gone: the daemon is gone.*MagicPigCache.open"):
                with MagicPigCache(client, llama, "gone", **{**OPTIONS, "gpu_timeout_ms": 300}) as cache:
                    decode(llama, cache, ids[:, :PROMPT], lambda step: step == 3 and (own.process.kill(), own.process.wait()))
            assert time.monotonic() - begin < 60


def test_a_proposal_without_its_index(connect, llama, ids):
    with pytest.raises(magicpig.NotSupported, match="no index for signature: make it with one"):
        with MagicPigCache(connect(), llama, "bare", signature_bits=0, **{**OPTIONS, "proposal": "signature", "budget": 0.1}) as cache:
            run(llama, cache, ids[:, : PROMPT + 1], [PROMPT, 1])


def test_a_context_that_is_dropped(connect, llama, ids):
    with pytest.raises((magicpig.NotFound, magicpig.Lost), match="dropped.*run the prompt again"):
        with MagicPigCache(connect(), llama, "dropped", **OPTIONS) as cache:
            other = connect()
            decode(llama, cache, ids[:, :PROMPT], lambda step: step == 3 and other.drop("dropped"))
