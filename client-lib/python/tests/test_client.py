"""Arrays, errors and the whole client API against a real daemon."""

import math
import os

import numpy as np
import pytest
import torch

import magicpig
from magicpig.arrays import address, token_array


# ---- arrays

def test_addresses_are_the_arrays_own():
    a, t = np.zeros((3, 4), np.float16), torch.zeros(3, 4, dtype=torch.bfloat16)
    assert address(a, "a", ("f16",), (3, 4)) == a.ctypes.data
    assert address(t, "t", ("bf16",), (3, 4)) == t.data_ptr()


@pytest.mark.parametrize(
    "array, error, text",
    [
        (np.zeros((4, 3), np.float32).T, ValueError, "contiguous"),
        (torch.zeros(4, 3).T, ValueError, "contiguous"),
        (np.zeros((3, 4), np.float64), TypeError, "float64"),
        (torch.zeros(3, 4, dtype=torch.float64), TypeError, "float64"),
        (np.zeros((2, 4), np.float32), ValueError, "shape"),
        ([[0.0]], TypeError, "list"),
    ],
)
def test_bad_arrays_are_named(array, error, text):
    with pytest.raises(error, match=text):
        address(array, "k", ("f32", "f16", "bf16"), (3, 4))


def test_read_only_outputs_are_refused():
    array = np.zeros(3, np.float32)
    array.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        address(array, "k", ("f32",), None, True)


def test_tokens():
    ids = np.arange(5, dtype=np.uint32)
    assert token_array(ids).ctypes.data == ids.ctypes.data
    assert token_array(torch.arange(5)[None]).tolist() == [0, 1, 2, 3, 4]
    assert token_array([]).size == 0
    for bad in ([-1], [2**32], [1.5]):
        with pytest.raises((ValueError, TypeError)):
            token_array(bad)


# ---- merging

def reference_merge(out_a, lse_a, out_b, lse_b):
    wa, wb = np.exp(lse_a.astype(np.float64)), np.exp(lse_b.astype(np.float64))
    return (wa[..., None] * out_a + wb[..., None] * out_b) / (wa + wb)[..., None], np.log(wa + wb)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_merge_matches_float64(kind):
    rng = np.random.default_rng(7)
    out_a, out_b = (rng.normal(size=(3, 5, 64)).astype(np.float32) for _ in range(2))
    lse_a, lse_b = (rng.normal(size=(3, 5)).astype(np.float32) * 4 for _ in range(2))
    out, lse = reference_merge(out_a, lse_a, out_b, lse_b)
    if kind == "torch":
        magicpig.merge(*(torch.from_numpy(x) for x in (out_a, lse_a, out_b, lse_b)))  # shares the arrays' memory
    else:
        magicpig.merge(out_a, lse_a, out_b, lse_b)
    assert np.allclose(out_a, out, atol=1e-5) and np.allclose(lse_a, lse, atol=1e-5)


def test_merge_with_an_empty_part():
    out, lse = np.ones((1, 2, 64), np.float32), np.zeros((1, 2), np.float32)
    empty, nothing = np.zeros_like(out), np.full_like(lse, -np.inf)
    magicpig.merge(out, lse, empty, nothing)
    assert (out == 1).all() and (lse == 0).all()
    magicpig.merge(empty, nothing, empty.copy(), nothing.copy())
    assert (empty == 0).all() and np.isneginf(nothing).all()


def test_merge_error_is_the_formula():
    rng = np.random.default_rng(8)
    out = [rng.normal(size=(2, 64)).astype(np.float32) for _ in range(2)]
    lse = [np.array([0.0, 1.0], np.float32), np.array([1.0, 0.5], np.float32)]
    v, a = np.array([0.2, 0.3], np.float32), np.array([0.01, 0.02], np.float32)
    merged, total = reference_merge(out[0], lse[0], out[1], lse[1])
    merged = merged.astype(np.float32)
    err = magicpig.merge_error([(out[0], lse[0], None, None), (out[1], lse[1], v, a)], merged)
    share = np.exp(lse[1] - total)
    distance = np.linalg.norm(out[1] - merged, axis=-1)
    expected = share * np.sqrt(v + distance**2 * a) / np.linalg.norm(merged, axis=-1)
    assert np.allclose(err, expected, rtol=1e-4)


# ---- against a daemon

HEADS, KV, D, ROWS = 6, 2, 64, 600
LAYER = magicpig.Layer(query_heads=HEADS, kv_heads=KV, d_k=D, row_dtype="f16", signature_bits=2)


@pytest.fixture
def client(daemon_socket):
    with magicpig.Client(daemon_socket) as c:
        yield c
        for info in list(c.contexts()):
            c.drop(info.name)


def rows(seed, kind="numpy"):
    k, v = np.random.default_rng(seed).normal(size=(2, ROWS, KV, D)).astype(np.float32)
    return (torch.from_numpy(k), torch.from_numpy(v)) if kind == "torch" else (k, v)


def exact(q, k, v):
    k, v = (np.repeat(np.asarray(x, np.float64), HEADS // KV, axis=1) for x in (k, v))
    logits = np.einsum("thd,nhd->thn", np.asarray(q, np.float64), k) / math.sqrt(D)
    lse = np.log(np.exp(logits).sum(-1))
    return np.einsum("thn,nhd->thd", np.exp(logits - lse[..., None]), v), lse


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_append_commit_attend_read(client, kind):
    k, v = rows(1, kind)
    q = np.random.default_rng(2).normal(size=(3, HEADS, D)).astype(np.float32)
    with client.create(f"rows-{kind}", magicpig.Spec([LAYER], fingerprint=b"m")) as context, client.queue() as queue:
        queue.append(context, 0, 0, k, v)
        queue.commit(context, 0, range(ROWS), seal=True)
        assert context.committed == ROWS and client.info(context.name).committed == ROWS
        queries = torch.from_numpy(q) if kind == "torch" else q
        result = queue.attend(context, 0, queries, proposal="dense", end=ROWS)
        out, lse = exact(q, k, v)
        assert np.abs(np.asarray(result.out) - out).max() < 2e-3 and np.abs(np.asarray(result.lse) - lse).max() < 2e-3
        assert (np.asarray(result.rows) == ROWS).all() and result.bytes_read > 0
        ticket, later = queue.submit_attend(context, 0, queries, proposal="dense", end=ROWS)
        queue.wait(ticket)
        assert np.array_equal(np.asarray(later.out), np.asarray(result.out))
        read_k, read_v = queue.read(context, 0, 10, 20)
        assert np.abs(read_k - np.asarray(k)[10:30]).max() < 5e-3 and np.abs(read_v - np.asarray(v)[10:30]).max() < 5e-3


def test_verify(client):
    k, v = rows(1, "numpy")
    with client.create("verified", magicpig.Spec([LAYER], fingerprint=b"m")) as context, client.queue() as queue:
        queue.append(context, 0, 0, k, v)
        queue.commit(context, 0, range(ROWS), seal=True)
    found = client.verify("verified")
    assert found.checked > 0 and found.bytes >= k.nbytes + v.nbytes >> 1
    with pytest.raises(magicpig.NotFound):
        client.verify("nothing")


def test_half_precision_inputs(client):
    k, v = rows(3, "torch")
    q = torch.randn(1, HEADS, D, generator=torch.Generator().manual_seed(1))
    answers = {}
    with client.queue() as queue:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            with client.create(f"dtype-{dtype}", magicpig.Spec([LAYER])) as context:
                queue.append(context, 0, 0, k.to(dtype), v.to(dtype))
                queue.commit(context, 0, range(ROWS))
                answers[dtype] = queue.attend(context, 0, q.to(dtype), proposal="dense", end=ROWS).out
    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        difference = (answers[dtype] - answers[torch.float32]).abs().max()
        assert 0 < difference < tolerance


def test_poll_returns_every_ticket(client):
    with client.queue() as queue:
        tickets, seen = {queue.submit_nop() for _ in range(20)}, set()
        while seen != tickets:
            for completion in queue.poll():
                completion.check()
                assert completion.ticket in tickets - seen
                seen.add(completion.ticket)
        assert not queue.poll()


def test_rows_by_error_and_verified(client):
    """No share named: by error, dense below 4,096 rows. With delta: within eps of the exact output, over 6 heads with delta = 1e-6."""
    n, window = 6000, 100
    random = np.random.default_rng(6)
    k, v = random.normal(size=(2, n, KV, D)).astype(np.float32)
    q = 2 * random.normal(size=(1, HEADS, D)).astype(np.float32)
    with client.create("adaptive", magicpig.Spec([LAYER], seed=1)) as context, client.queue() as queue:
        queue.append(context, 0, 0, k, v)
        queue.commit(context, 0, range(n), seal=True)
        by_error = queue.attend(context, 0, q, seed=1)
        assert 0.004 * n < by_error.rows.min() and by_error.rows.max() < 0.1 * n
        assert (queue.attend(context, 0, q, end=4000).rows == 4000).all()
        huge = np.full((1, HEADS), 50, np.float32)  # the caller has all the mass: the floor
        assert (queue.attend(context, 0, q, seed=1, window_lse=huge).rows < 0.007 * n).all()
        mine = queue.attend(context, 0, q, proposal="dense", begin=n - window)
        verified = queue.attend(
            context, 0, q, end=-window, seed=1, error_target=0.2, delta=1e-6, window_lse=mine.lse, window_out=mine.out
        )
        assert verified.rows.max() < n - window and verified.rows_read > 0
        out, lse = verified.out.copy(), verified.lse.copy()
        magicpig.merge(out, lse, mine.out, mine.lse)
        expected = queue.attend(context, 0, q, proposal="dense").out
        assert (np.linalg.norm(out - expected, axis=-1) < 0.2 * np.linalg.norm(expected, axis=-1)).all()
        with pytest.raises(magicpig.Error):
            queue.attend(context, 0, q, delta=0.1)
        with pytest.raises(ValueError):
            queue.attend(context, 0, q, error_target=0.2, delta=0.1, window_lse=mine.lse, window_out=mine.out[:, :2])
        two = np.repeat(q, 2, axis=0)  # a row per token, or the library would read past the end
        with pytest.raises(ValueError, match="window_lse"):
            queue.attend(context, 0, two, error_target=0.2, window_lse=mine.lse[0])
        with pytest.raises(ValueError, match="window_out"):
            queue.attend(context, 0, two, error_target=0.2, delta=0.1, window_lse=np.repeat(mine.lse, 2, axis=0), window_out=mine.out[0])


def test_same_seed_same_bits(client):
    k, v = rows(4)
    q = np.random.default_rng(5).normal(size=(1, HEADS, D)).astype(np.float32)
    with client.create("seeded", magicpig.Spec([LAYER])) as context, client.queue() as queue:
        queue.append(context, 0, 0, k, v)
        queue.commit(context, 0, range(ROWS), seal=True)
        ask = lambda seed: queue.attend(context, 0, q, proposal="uniform", budget=0.2, seed=seed, end=ROWS).out
        assert np.array_equal(ask(1), ask(1)) and not np.array_equal(ask(1), ask(2))


def test_prefix_fork_truncate(client):
    k, v = rows(6)
    spec = magicpig.Spec([LAYER], fingerprint=b"prefix")
    with client.create("parent", spec) as parent, client.queue() as queue:
        queue.append(parent, 0, 0, k, v)
        queue.commit(parent, 0, range(ROWS), seal=True)
        found, matched = client.open_prefix(list(range(100)) + [7], fingerprint=b"prefix")
        assert (found.name, matched) == ("parent", 100)
        fork = found.fork("child", 100)
        assert fork.committed == 100 and client.info("child").fork_tokens == 100
        queue.append(fork, 0, 100, k[:5], v[:5])
        queue.commit(fork, 100, range(5))
        queue.truncate(fork, 102)
        assert client.info("child").committed == 102 and client.info("parent").committed == ROWS
        with pytest.raises(magicpig.NotFound):
            client.open_prefix([5, 6], fingerprint=b"prefix")


def test_errors_say_what_is_wrong(client, tmp_path):
    with pytest.raises(magicpig.NoDaemon, match="nobody.sock") as caught:
        magicpig.Client(str(tmp_path / "nobody.sock"))
    assert caught.value.status == -12
    with pytest.raises(magicpig.NotFound):
        client.open("no such context")
    with pytest.raises(ValueError, match="proposal"):
        magicpig.Layer(default_proposal="best")._pack()
    with pytest.raises(magicpig.InvalidArgument, match="d_k"):
        client.create("odd", magicpig.Spec([magicpig.Layer(query_heads=4, kv_heads=2, d_k=65)]))
    with client.create("errors", magicpig.Spec([LAYER])) as context, client.queue() as queue:
        with pytest.raises(magicpig.Exists):
            client.create("errors", magicpig.Spec([LAYER]))
        with pytest.raises(magicpig.Busy):
            client.open("errors", write=True)
        k, v = rows(9)
        with pytest.raises(ValueError, match="layer"):
            queue.append(context, 1, 0, k, v)
        with pytest.raises(ValueError, match="shape"):
            queue.append(context, 0, 0, k, v[:, :, :32].copy())
        with pytest.raises(magicpig.OutOfRange):
            queue.append(context, 0, 7, k, v)
            queue.commit(context, 7, range(ROWS))
        k[3, 0, 0] = np.nan
        with pytest.raises(magicpig.NotFinite):
            queue.append(context, 0, 0, k, v)
        with pytest.raises(magicpig.OutOfRange):
            queue.read(context, 0, 0, 10)
    with pytest.raises(ValueError, match="closed"):
        queue.nop()
    with pytest.raises(ValueError, match="closed"):
        context.committed  # noqa: B018


def test_status_config_and_lists(client):
    with client.create("listed", magicpig.Spec([LAYER, LAYER], mode=0o640)) as context:
        info = client.info("listed")
        assert (info.layer_count, info.mode, info.committed) == (2, 0o640, 0)
        assert [i.name for i in client.contexts()] == ["listed"]
        assert context.layers[0].query_heads == HEADS and context.layers[0].d_v == D
        assert context.layers[0].row_dtype == "f16" and context.layers[0].signature_bits == 2
        client.ping()
        status = client.status()
        assert status.contexts == 1 and status.version.startswith("0.1") and status.pool_used > 0
        assert "pool.size" in client.config()
        client.chmod("listed", 0o600)
        assert client.info("listed").mode == 0o600
        assert client.verify("listed").checked == 0  # nothing is sealed
        with pytest.raises(magicpig.NotFound):
            client.verify("missing")


def test_profiles_and_noted_queries(client):
    spec = magicpig.Spec([LAYER], fingerprint=b"profiled")
    k, v = rows(4)
    with client.create("profiled", spec) as context, client.queue() as queue:
        queue.append(context, 0, 0, k, v)
        queue.commit(context, 0, range(ROWS), seal=True)
        assert client.queries("profiled", 0, 0) == []
        q = np.random.default_rng(2).standard_normal((HEADS, D), dtype=np.float32)
        for seed in range(64):
            queue.attend(context, 0, q, proposal="signature", budget=0.1, seed=seed)
        (noted,) = client.queries("profiled", 0, 0)
        assert any(np.array_equal(np.float32(noted), head) for head in q)
        with pytest.raises(magicpig.InvalidArgument):
            client.queries("profiled", 0, 99)
    info = client.info("profiled")
    assert info.profile == "none"
    digits = info.fingerprint.rstrip(bytes(1)).hex()
    text = f"[profile]\nversion = 1\nfingerprint = {digits}\n[layer 0]\nproposal = dense\n[end]\nlayers = 1\n"
    with pytest.raises(magicpig.NotFound):
        client.profile(info.fingerprint)
    with pytest.raises(magicpig.InvalidArgument, match="line 5"):
        client.set_profile(info.fingerprint, text.replace("[layer", "[lair"))
    with pytest.raises(ValueError, match="64 bytes"):
        client.set_profile(b"short", text)
    client.set_profile(info.fingerprint, text)
    assert client.profile(info.fingerprint) == text and client.info("profiled").profile == "owner"
    assert [i.profile for i in client.contexts() if i.name == "profiled"] == ["owner"]
    assert list(client.profiles()) == [(info.fingerprint, os.geteuid(), text)]
    client.clear_profile(info.fingerprint)
    assert not list(client.profiles())
    with pytest.raises(magicpig.NotFound):
        client.clear_profile(info.fingerprint)


def test_closing_the_client_closes_the_rest(daemon_socket):
    client = magicpig.Client(daemon_socket)
    queue = client.queue()
    client.close()
    client.close()
    for call in (queue.nop, client.ping):
        with pytest.raises(ValueError, match="closed"):
            call()
