"""Real queries, keys and values (tools/quality/fixture.npz: a sharp and a diffuse head of SmolLM2 over 6K tokens) through the GPU's side and
through the host's. What the daemon answers is the same to the last bit where both ask with the same seed: the GPU's signature is the
daemon's, so that the same rows are taken. Merged outputs differ by the rounding of the client's own part."""

import pathlib

import numpy as np
import pytest
import torch

import magicpig
from gpu_world import synchronize
from magicpig import cuda, ops

FIXTURE = pathlib.Path(__file__).resolve().parents[3] / "tools" / "quality" / "fixture.npz"
SINKS, WINDOW = 4, 64


@pytest.fixture(scope="module")
def tensors():
    return dict(np.load(FIXTURE))


@pytest.fixture
def context(daemon_socket, gpu_operators, tensors):
    layer = magicpig.Layer(
        query_heads=3, kv_heads=1, d_k=64, scale=float(tensors["scale"]), signature_bits=2, row_dtype="f16"
    )
    sealed = int(tensors["sealed"])
    with magicpig.Client(daemon_socket) as client, client.queue() as queue:
        context = client.create("heads", magicpig.Spec([layer] * 2, seed=1))
        for index in range(2):
            k, v, recent = (np.ascontiguousarray(tensors[name][index]) for name in ("k", "v", "recent"))
            queue.append(context, index, 0, k[:sealed], v[:sealed], recent)
        queue.commit(context, 0, tensors["tokens"][:sealed], seal=True)
        yield context
        context.close()
        client.drop("heads")


def own_part(tensors, index, q, position, split):
    rows = np.r_[0:SINKS, split : position + 1]
    k, v = (tensors[name][index, rows, 0].astype(np.float64) for name in ("k", "v"))
    logits = q.astype(np.float64) @ k.T * float(tensors["scale"])
    lse = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    return np.exp(logits - lse[:, None]) @ v, lse


@pytest.mark.parametrize(
    "options", [{"proposal": "dense"}, {"proposal": "signature", "budget": 0.02}, {"proposal": "signature", "budget": 0.1}], ids=str
)
def test_equals_the_host(context, tensors, device, options):
    client, seed = context.client, 77
    with client.queue() as queue, client.queue(entries=4, slots=1) as lent, cuda.Gpu(lent, timeout_ms=20_000) as gpu:
        rows, split = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
        other = 0
        for index in range(2):
            given = {**options, "dtype": "f32", "sinks": SINKS, "seed": seed}
            attention = ops.Attention(cuda.Plan(gpu, [context], index, **given), device)
            k, v = (torch.from_numpy(tensors[name][index])[None].to(device) for name in ("k", "v"))
            for n, position in enumerate(tensors["positions"]):
                q = torch.from_numpy(tensors["q"][index, n])
                split.fill_(context.committed - WINDOW)
                rows.fill_(int(position) + 1)
                gpu.begin()
                mine = q.view(1, 1, 3, 64).to(device)
                theirs, theirs_lse = torch.empty_like(mine), torch.empty(1, 1, 3, device=device)
                attention.submit(mine, split, rows)
                attention.merge(theirs, theirs_lse, daemon_only=True)
                synchronize(device)
                gpu.check()
                answer = gpu.last_answer()
                asked = {**options, "begin": SINKS, "end": context.committed - WINDOW, "query_position": int(position)}
                expected = queue.attend(context, index, q.numpy(), seed=seed + answer.sequence, **asked)
                assert np.array_equal(theirs.cpu().numpy()[0], expected.out)
                assert np.array_equal(theirs_lse.cpu().numpy()[0], expected.lse)
                assert answer.rows_read == expected.rows_read
                other += not np.array_equal(
                    theirs.cpu().numpy()[0], queue.attend(context, index, q.numpy(), seed=seed + 1000 + n, **asked).out
                )
                out, lse = attention(mine, k, v, split, rows)
                synchronize(device)
                gpu.check()
                whole = queue.attend(context, index, q.numpy(), seed=seed + gpu.last_answer().sequence, **asked)
                own, own_lse = own_part(tensors, index, q.numpy(), int(position), context.committed - WINDOW)
                weight = 1 / (1 + np.exp(whole.lse[0] - own_lse))[:, None]
                merged = weight * own + (1 - weight) * whole.out[0]
                assert np.abs(out.cpu().numpy()[0, 0] - merged).max() <= 1e-5 * np.abs(merged).max()
                assert np.abs(lse.cpu().numpy()[0, 0] - np.logaddexp(own_lse, whole.lse[0])).max() <= 1e-4
        assert other >= 8 if options["proposal"] == "signature" else other == 0  # other seeds take other rows
