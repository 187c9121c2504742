"""However a prompt's rows are cut on their way from a GPU, the daemon has the same rows and, by the last queries, the same index."""

import ctypes

import numpy as np
import pytest
import torch

import magicpig
from magicpig import _lib, outbox
from magicpig.channel import Channel, readable
from magicpig.options import Options, Stats
from magicpig.records import Layer

ROWS, LAYER = 500, Layer(query_heads=6, kv_heads=2, d_k=64, signature_bits=2, row_dtype="bf16")


def balance_of(context, index):
    """Made of all rows and the last queries."""
    balance = np.zeros((LAYER.kv_heads, LAYER.d_k), np.float32)
    raw = _lib.Signature(size=ctypes.sizeof(_lib.Signature))
    at = balance.ctypes.data_as(ctypes.c_void_p)
    assert _lib.library().mpig_context_signature(context._open_handle(), index, ctypes.byref(raw), at) == 0 and raw.version
    return balance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("block", [8 << 20, 220_000, 131_500], ids=["one block", "several", "many"])
def test_rows_and_index(daemon_socket, device, monkeypatch, dtype, block):
    monkeypatch.setattr(outbox, "_BLOCK_BYTES", block)
    g = torch.Generator().manual_seed(2)
    k, v = (torch.randn(2, 1, 2, ROWS, 64, generator=g).to(dtype).to(device) for _ in range(2))
    recent = torch.randn(2, 64, 6, 64, generator=g).to(dtype).to(device)
    answers = []
    with magicpig.Client(daemon_socket) as client:
        for name in ("whole", "cut"):
            context = client.create(name, magicpig.Spec([LAYER] * 2, seed=1))
            channel = Channel(client, context, [LAYER] * 2, lambda index: k, Options(), Stats())
            box = outbox.Outbox(channel, device) if name == "cut" else None
            for begin, end in ((0, 1), (1, 300), (300, ROWS)):
                part = slice(begin, end)
                for index in range(2):
                    rows = k[index, :, :, part], v[index, :, :, part]
                    queries = recent[index] if end == ROWS else None
                    if box is not None:
                        box.append(box.mark(), index, begin, *rows, queries)
                    else:
                        channel.append(index, begin, *rows, None if queries is None else readable(queries).cpu())
            if box is not None:
                assert len(box._jobs) <= outbox._BLOCKS
                box.finish()
                box.finish()
            assert not channel.lost
            channel.commit(0, np.arange(ROWS, dtype=np.uint32), seal=True)
            with client.queue() as queue:
                answers += [[balance_of(context, index), *queue.read(context, index, 0, ROWS)] for index in range(2)]
            channel.close()
            client.drop(name)
    for one, two in zip(answers[:2], answers[2:]):
        assert [np.array_equal(a, b) for a, b in zip(one, two)] == [True] * 3


def test_what_is_given_up(daemon_socket, device):
    k = torch.zeros(1, 2, 3, 64, device=device)
    with magicpig.Client(daemon_socket) as client:
        context = client.create("given up", magicpig.Spec([LAYER]))
        channel = Channel(client, context, [LAYER], lambda index: k, Options(), Stats())
        box = outbox.Outbox(channel, device)
        box.append(box.mark(), 0, 0, k, k)
        box.discard()
        box.finish()
        with pytest.raises(magicpig.OutOfRange):
            channel.commit(0, np.arange(3, dtype=np.uint32))
        with pytest.raises(ValueError, match="do not fit"):
            box.append(box.mark(), 0, 0, k, k, torch.zeros(64, 600, 64, device=device))
        channel.close()
        client.drop("given up")
