"""A prompt's rows from the GPU's memory: the daemon has the same as from the host's and, by the last queries, the same index."""

import ctypes

import numpy as np
import pytest
import torch

import magicpig
from magicpig import _lib
from magicpig.channel import Channel
from magicpig.options import Options, Stats
from magicpig.prompt_rows import PromptRows
from magicpig.records import Layer

ROWS, LAYER = 500, Layer(query_heads=6, kv_heads=2, d_k=64, signature_bits=2, row_dtype="bf16")


def balance_of(context, index):
    """Made of all rows and the last queries."""
    balance = np.zeros((LAYER.kv_heads, LAYER.d_k), np.float32)
    raw = _lib.Signature(size=ctypes.sizeof(_lib.Signature))
    at = balance.ctypes.data_as(ctypes.c_void_p)
    assert _lib.library().mpig_context_signature(context._open_handle(), index, ctypes.byref(raw), at) == 0 and raw.version
    return balance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_rows_and_index(daemon_socket, device, dtype):
    g = torch.Generator().manual_seed(2)
    k, v = (torch.randn(2, 1, 2, ROWS, 64, generator=g).to(dtype).to(device) for _ in range(2))
    recent = torch.randn(2, 64, 6, 64, generator=g).to(dtype).to(device)
    answers = []
    with magicpig.Client(daemon_socket) as client:
        for name in ("host", "gpu"):
            context = client.create(name, magicpig.Spec([LAYER] * 2, seed=1))
            channel = Channel(client, context, [LAYER] * 2, lambda index: k, Options(), Stats())
            ours = PromptRows(client, channel, device) if name == "gpu" else None
            for begin, end in ((0, 1), (1, 300), (300, ROWS)):
                part = slice(begin, end)
                for index in range(2):
                    rows = k[index, :, :, part], v[index, :, :, part]
                    queries = recent[index] if end == ROWS else None
                    if ours is not None:
                        ours.append(index, begin, *rows, queries)
                    else:
                        channel.append(index, begin, *rows, None if queries is None else queries.cpu())
            if ours is not None:
                ours.finish()
                ours.finish()
            assert not channel.lost
            channel.commit(0, np.arange(ROWS, dtype=np.uint32), seal=True)
            with client.queue() as queue:
                answers += [[balance_of(context, index), *queue.read(context, index, 0, ROWS)] for index in range(2)]
            if ours is not None:
                ours.close()
            channel.close()
            client.drop(name)
    for one, two in zip(answers[:2], answers[2:]):
        assert [np.array_equal(a, b) for a, b in zip(one, two)] == [True] * 3


def test_what_is_given_up(daemon_socket, device):
    k = torch.zeros(1, 2, 3, 64, device=device)
    with magicpig.Client(daemon_socket) as client:
        context = client.create("given up", magicpig.Spec([LAYER]))
        channel = Channel(client, context, [LAYER], lambda index: k, Options(), Stats())
        ours = PromptRows(client, channel, device)
        ours.discard()
        ours.append(0, 5, k, k)  # nothing is before them
        ours.finish()
        assert channel.lost
        channel.lost = False
        ours.append(0, 0, k, k)
        ours.discard()
        ours.append(0, 0, torch.full_like(k, float("nan")), k)
        with pytest.raises(magicpig.NotFinite):
            ours.finish()
        ours.append(0, 0, k, k)
        ours.finish()
        channel.commit(0, np.arange(3, dtype=np.uint32))
        channel.close()
        client.drop("given up")
