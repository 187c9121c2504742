"""The Cache class with tiny random models: against the model's own attention, with an in-process stand-in and a real daemon."""

import numpy as np
import pytest
import torch
from transformers import DynamicCache, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

import magicpig
from magicpig import cache_layers
from fake import FakeClient, Store
from magicpig.exact import causal_mask, exact_attention
from magicpig.transformers import MagicPigCache, fingerprint, layer_table, register

PROMPT, STEPS = 300, 12


def make_llama(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=64, vocab_size=199, max_position_embeddings=1024, initializer_range=0.08, tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    register(model)
    return model


def make_gemma2(seed=0):
    """Soft-capped logits, and every other layer with a sliding window."""
    torch.manual_seed(seed)
    config = Gemma2Config(
        hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=64, vocab_size=199, max_position_embeddings=1024, initializer_range=0.08, sliding_window=32,
        query_pre_attn_scalar=64, attn_logit_softcapping=5.0,
    )
    return Gemma2ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def llama():
    return make_llama()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 199, (1, PROMPT + STEPS), generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=["fake", "daemon"])
def connect(request):
    """A function that makes one more client of the same daemon."""
    made = []
    if request.param == "fake":
        store = Store()
        make = lambda: FakeClient(store)
    else:
        socket = request.getfixturevalue("daemon_socket")
        make = lambda: magicpig.Client(socket)

    def connect():
        made.append(make())
        return made[-1]

    yield connect
    for client in made:
        client.close()
    if request.param == "daemon":
        with magicpig.Client(socket) as client:
            for info in list(client.contexts()):
                client.drop(info.name)


def opening(options):
    return {name: value for name, value in options.items() if name != "row_dtype"}


@torch.no_grad()
def own_logits(model, ids, attention):
    """The model's own full attention."""
    now = model.config._attn_implementation
    model.set_attn_implementation(attention)
    logits = model(ids, use_cache=False).logits[0]
    model.set_attn_implementation(now)
    return logits


@torch.no_grad()
def run(model, cache, ids, chunks):
    """Logits of all tokens, fed in pieces."""
    logits, at = [], 0
    for n in chunks:
        logits.append(model(ids[:, at : at + n], past_key_values=cache, use_cache=True).logits[0])
        at += n
    assert at == ids.shape[1]
    return torch.cat(logits)


OPTIONS = dict(proposal="dense", row_dtype="f16", window=16, sinks=4)
CHUNKINGS = [
    [PROMPT] + [1] * STEPS,
    [128, 128, PROMPT - 256] + [1] * STEPS,
    [200] + [1] * 3 + [97] + [1] * (STEPS - 10) + [2, 8],  # single steps, then a continued prompt, and again
    [1] * 3 + [PROMPT + STEPS - 3],
]


@pytest.mark.parametrize("chunks", CHUNKINGS, ids=range(len(CHUNKINGS)))
def test_dense_equals_own_attention(connect, llama, ids, chunks):
    chunks = [n for n in chunks]
    chunks[-1] += ids.shape[1] - sum(chunks)
    with MagicPigCache(connect(), llama, "dense", **OPTIONS) as cache:
        logits = run(llama, cache, ids, chunks)
        expected = own_logits(llama, ids, "sdpa")
        assert (logits - expected).abs().max() < 2e-3 * expected.abs().max()
        assert cache.get_seq_length() == ids.shape[1] == cache.context.committed
        held = cache.layers[0].rows.count
        assert 4 + 16 <= held < 4 + 2 * 16
        # everything between sinks and window came from the daemon, row by row
        assert cache.stats.rows_attended == cache.stats.rows_visible and cache.stats.head_tokens == 3 * 4 * cache.stats.tokens
        visible = cache.stats.rows_visible + cache.stats.exact_rows
        steps = [(at, n) for at, n in zip(np.cumsum([0] + chunks), chunks)]
        sealed_from = next(at for at, n in steps if at and n == 1)
        assert visible == 3 * 4 * sum(p + 1 for p in range(sealed_from, ids.shape[1]))


def test_window_alone_differs(connect, llama, ids):
    """The comparison can fail: without the daemon's rows the logits are elsewhere."""
    with MagicPigCache(connect(), llama, "window", **{**OPTIONS, "proposal": "window"}) as cache:
        logits = run(llama, cache, ids, [PROMPT] + [1] * STEPS)
        expected = own_logits(llama, ids, "sdpa")
        assert (logits[:PROMPT] - expected[:PROMPT]).abs().max() < 2e-3 * expected.abs().max()
        assert (logits[PROMPT:] - expected[PROMPT:]).abs().max() > 0.05 * expected.abs().max()


def check_sliding_layers_and_soft_cap(connect, model, ids, options):
    register(model)
    with MagicPigCache(connect(), model, "gemma", **options) as cache:
        logits = run(model, cache, ids, [128, PROMPT - 128] + [1] * STEPS)
        expected = own_logits(model, ids, "eager")
        assert (logits - expected).abs().max() < 5e-3 * expected.abs().max()
    with MagicPigCache.open(connect(), model, ids[0], **opening(options)) as cache:
        again = run(model, cache, ids[:, -1:], [1])
        assert cache.length == ids.shape[1] and (again[-1] - expected[-1]).abs().max() < 5e-3 * expected.abs().max()


def test_sliding_layers_and_soft_cap(connect, ids):
    check_sliding_layers_and_soft_cap(connect, make_gemma2(), ids, OPTIONS)


def check_generate(connect, llama, ids, options, also=lambda cache: True):
    """also: what must be true of the cache at the end."""
    prompt = ids[:, :PROMPT]
    keep = dict(max_new_tokens=STEPS, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(prompt))
    expected = llama.generate(prompt, past_key_values=DynamicCache(config=llama.config), **keep)
    with MagicPigCache(connect(), llama, "generate", **options) as cache:
        assert torch.equal(llama.generate(prompt, past_key_values=cache, **keep), expected)
        assert cache.length == PROMPT + STEPS - 1  # the last token was never fed back
        assert also(cache)


def test_generate(connect, llama, ids):
    check_generate(connect, llama, ids, OPTIONS)


def test_reopening_continues_the_same(connect, llama, ids):
    first, second = connect(), connect()
    open_options = opening(OPTIONS)
    with MagicPigCache(first, llama, "book", **OPTIONS) as cache:
        run(llama, cache, ids[:, : PROMPT + 1], [PROMPT, 1])
        expected = run(llama, cache, ids[:, PROMPT + 1 :], [1] * (STEPS - 1))
    # the context is longer than this prompt: a fork, and the original stays as it is
    with MagicPigCache.open(second, llama, ids[0, : PROMPT + 2], fork_name="branch", **open_options) as cache:
        assert (cache.context.name, cache.get_seq_length()) == ("branch", PROMPT + 1)
        again = run(llama, cache, ids[:, PROMPT + 1 :], [1] * (STEPS - 1))
        assert (again - expected).abs().max() < 2e-3 * expected.abs().max()
        assert again.argmax(-1).equal(expected.argmax(-1))
    with pytest.raises(magicpig.NotFound):
        MagicPigCache.open(second, llama, (ids[0, :50] + 1) % 199, **open_options)
    with pytest.raises(magicpig.NotFound):  # the same tokens under another model
        MagicPigCache.open(second, make_llama(1), ids[0], **open_options)


def test_reopening_takes_or_forks(connect, llama, ids):
    first, second = connect(), connect()
    open_options = opening(OPTIONS)
    prompt = ids[:, :PROMPT]
    owner = MagicPigCache(first, llama, "owned", **OPTIONS)
    run(llama, owner, prompt, [PROMPT])
    owner.seal()
    with MagicPigCache.open(second, llama, ids[0, : PROMPT + 5], **open_options) as fork:
        assert fork.context.name.startswith("owned~")  # the lease is held by `first`
        run(llama, fork, ids[:, PROMPT : PROMPT + 5], [5])
    owner.close()
    with MagicPigCache.open(second, llama, torch.cat([prompt, 1 - prompt[:, :2] % 2], 1)[0], **open_options) as taken:
        assert taken.context.name == "owned" or taken.context.name.startswith("owned~")
        assert taken.length == PROMPT or taken.length == PROMPT + 1


def test_crop_goes_back(connect, llama, ids):
    with MagicPigCache(connect(), llama, "crop", **OPTIONS) as cache:
        logits = run(llama, cache, ids, [PROMPT] + [1] * STEPS)
        cache.crop(PROMPT - 20)
        assert cache.length == PROMPT - 20 == cache.context.committed
        again = run(llama, cache, ids[:, PROMPT - 20 :], [16, 4] + [1] * STEPS)
        assert (again[20:] - logits[PROMPT:]).abs().max() < 2e-3 * logits.abs().max()


def test_a_prompt_that_was_cropped_is_indexed(daemon_socket, llama, ids):
    """The daemon indexes nothing while it has rows beyond what is committed."""
    with magicpig.Client(daemon_socket) as client:
        with MagicPigCache(client, llama, "shorter", **OPTIONS) as cache:
            run(llama, cache, ids[:, :PROMPT], [PROMPT])
            cache.crop(PROMPT - 20)
            cache.seal()
            info = client.info("shorter")
            assert info.committed == info.indexed == PROMPT - 20
        client.drop("shorter")


def test_a_failed_step_is_forgotten(connect, llama, ids):
    with MagicPigCache(connect(), llama, "failed", **OPTIONS) as cache:
        run(llama, cache, ids[:, :PROMPT], [PROMPT])
        cache.seal()

        def fail(*_):
            raise KeyboardInterrupt

        handle = llama.model.layers[1].mlp.register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            llama(ids[:, PROMPT : PROMPT + 1], past_key_values=cache)
        handle.remove()
        logits = run(llama, cache, ids[:, PROMPT:], [1] * STEPS)
        expected = own_logits(llama, ids, "sdpa")[PROMPT:]
        assert (logits - expected).abs().max() < 2e-3 * expected.abs().max()


def test_requests_carry_the_options(llama, ids):
    client = FakeClient(Store())
    options = {**OPTIONS, "proposal": "signature", "budget": 0.02, "seed": 9, "sampled_layers": [1], "error_target": 0.05}
    with MagicPigCache(client, llama, "options", **options) as cache:
        run(llama, cache, ids[:, : PROMPT + 1], [PROMPT, 1])
        assert [layer for layer, _ in client.attends] == [0, 1, 2]
        for layer, asked in client.attends:
            assert asked["proposal"] == ("signature" if layer == 1 else "dense")
            assert asked["budget"] == (0.02 if layer == 1 else 0)
            assert asked["error_target"] == (0.05 if layer == 1 else 0)
            assert (asked["begin"], asked["end"], asked["seed"]) == (4, 16 * ((PROMPT - 16) // 16), 9)
            assert asked["query_position"] == PROMPT and asked["window_lse"].shape == (1, 4)
        assert client.store.contexts["options"].seals == 1


def test_default_options_go_by_the_profile(daemon_socket, llama, ids):
    """So few rows are all attended by default; a profile that names a share is what a cache with default options gets, and one with its own does not."""
    kept = {}
    with magicpig.Client(daemon_socket) as client:
        for name, options in (("without", {}), ("with", {}), ("own", {"budget": 0.5})):
            with MagicPigCache(client, llama, name, window=16, sinks=4, signature_bits=2, **options) as cache:
                run(llama, cache, ids, [PROMPT] + [1] * STEPS)
                kept[name] = cache.stats.kept
            info = client.info(name)
            layers = "".join(f"[layer {n}]\nproposal = signature\nbudget = 0.1\n" for n in range(3))
            digits = info.fingerprint.rstrip(bytes(1)).hex()
            client.set_profile(info.fingerprint, f"[profile]\nversion = 1\nfingerprint = {digits}\n{layers}[end]\nlayers = 3\n")
        client.clear_profile(info.fingerprint)
        for name in kept:
            client.drop(name)
    assert kept["without"] == 1 and 0.05 < kept["with"] < 0.2 and 0.35 < kept["own"] < 0.65


def test_adaptive_budgets_get_these_tokens_exact_part(llama, ids, monkeypatch):
    """Each token of a request comes with its own LSE and output, as they are before anything is merged into them."""
    measured = []

    def exact(*arguments):
        found = exact_attention(*arguments)
        measured.append(tuple(x.clone() for x in found))
        return found

    monkeypatch.setattr(cache_layers, "exact_attention", exact)
    client = FakeClient(Store())
    with MagicPigCache(client, llama, "adaptive", **{**OPTIONS, "proposal": "signature"}) as cache:
        run(llama, cache, ids[:, : PROMPT + 1], [PROMPT, 1])
        for begin, tokens in ((PROMPT + 1, 1), (PROMPT + 2, 3)):
            measured.clear()
            client.attends.clear()
            run(llama, cache, ids[:, begin : begin + tokens], [tokens])
            assert len(client.attends) == len(measured) > 0
            for (layer, asked), (out, lse) in zip(client.attends, measured):
                assert asked["budget"] == 0 and asked["error_target"] == 0
                assert torch.equal(asked["window_lse"], lse) and torch.equal(asked["window_out"], out)
                assert lse.shape == (tokens, 4)


def test_short_contexts_stay_here(llama, ids):
    client = FakeClient(Store())
    with MagicPigCache(client, llama, "short", **OPTIONS) as cache:
        logits = run(llama, cache, ids[:, :30], [3] + [1] * 27)
        expected = own_logits(llama, ids[:, :30], "sdpa")
        assert (logits - expected).abs().max() < 2e-3 * expected.abs().max()


def test_what_is_refused(llama, ids):
    client = FakeClient(Store())
    with pytest.raises(ValueError, match="proposal"):
        MagicPigCache(client, llama, "x", proposal="best")
    with pytest.raises(ValueError, match="budget"):
        MagicPigCache(client, llama, "x", budget=2)
    cache = MagicPigCache(client, llama, "x", **OPTIONS)
    with pytest.raises(ValueError, match="batch of 2"):
        llama(ids[:, :10].repeat(2, 1), past_key_values=cache)
    with pytest.raises(ValueError, match="padding"):
        llama(ids[:, :10], attention_mask=torch.tensor([[0] + [1] * 9]), past_key_values=cache)
    with pytest.raises(RuntimeError, match="tokens"):
        llama(inputs_embeds=torch.zeros(1, 3, 128), past_key_values=cache)
    with pytest.raises(ValueError, match="empty"):
        cache.seal()
    with pytest.raises(NotImplementedError, match="beam"):
        cache.reorder_cache(torch.zeros(1, dtype=torch.long))
    other = make_llama()
    other.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="attn_implementation"):
        other(ids[:, :10], past_key_values=MagicPigCache(client, other, "y", **OPTIONS))


def test_plain_use_without_the_cache(llama, ids):
    with torch.no_grad():
        logits = llama(ids, past_key_values=DynamicCache(config=llama.config)).logits[0]
    assert torch.allclose(logits, own_logits(llama, ids, "sdpa"), atol=1e-4)


def test_layer_table_and_fingerprint(llama):
    table = layer_table(make_gemma2())
    assert [layer.window for layer in table] == [32, 0, 32, 0] and table[1].softcap == 5.0 and table[1].scale == 64**-0.5
    assert [layer.signature_bits for layer in table] == [0, 2, 0, 2]
    assert fingerprint(llama) == fingerprint(make_llama()) != fingerprint(make_llama(1))


def test_exact_attention_against_float64():
    g = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(1, h, n, 64, generator=g) for h, n in ((6, 300), (2, 310), (2, 310)))
    out, lse = exact_attention(q, k, v, 0.3, causal_mask(300, 310, q.device), softcap=2.0, sink_logit=torch.arange(6.0))
    kk, vv = (x.double().repeat_interleave(3, 1)[0] for x in (k, v))
    logits = 2 * torch.tanh(0.3 * q[0].double() @ kk.transpose(1, 2) / 2)
    logits.masked_fill_(torch.arange(310)[None] > torch.arange(300)[:, None] + 10, float("-inf"))
    with_sink = torch.cat([logits, torch.arange(6.0).double()[:, None, None].expand(6, 300, 1)], -1)
    assert torch.allclose(lse.double().T, with_sink.logsumexp(-1), atol=1e-5)
    expected = (with_sink.softmax(-1)[..., :-1] @ vv).transpose(0, 1)
    assert torch.allclose(out.double(), expected, atol=1e-5)
