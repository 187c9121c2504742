"""An in-process stand-in for a daemon: the Client, Context and Queue calls that magicpig.transformers makes, with rows in
numpy, exact attention for every proposal, and the daemon's rules about leases, positions and commits."""

from __future__ import annotations

import numpy as np
import torch

from magicpig import Busy, Exists, NoLease, NotFound, OutOfRange
from magicpig.arrays import token_array
from magicpig.records import AttendResult


class Store:
    """What a daemon keeps: survives its clients."""

    def __init__(self):
        self.contexts = {}


class _Record:
    def __init__(self, spec):
        self.spec, self.tokens, self.writer = spec, np.zeros(0, np.uint32), None
        self.rows = [([], []) for _ in spec.layers]
        self.seals = 0


class FakeClient:
    def __init__(self, store):
        self.store = store
        self.attends = []  # (layer, options) of every request

    def create(self, name, spec):
        if name in self.store.contexts:
            raise Exists(name)
        self.store.contexts[name] = _Record(spec)
        return FakeContext(self, name, True)

    def open(self, name, *, write=False, fingerprint=b""):
        return FakeContext(self, name, write)

    def open_prefix(self, tokens, *, fingerprint, write=False, fork_name=None, min_tokens=0):
        best, length = None, 0
        for name, record in self.store.contexts.items():
            n = min(len(tokens), len(record.tokens))
            different = np.flatnonzero(record.tokens[:n] != tokens[:n])
            common = int(different[0]) if different.size else n
            if record.spec.fingerprint == fingerprint and common > length:
                best, length = name, common
        if best is None or length < max(1, min_tokens):
            raise NotFound("no context has this prefix")
        return FakeContext(self, best, write), length

    def queue(self, **_options):
        return FakeQueue(self)

    def close(self):
        for record in self.store.contexts.values():
            if record.writer is not None and record.writer.client is self:
                record.writer = None


class FakeContext:
    def __init__(self, client, name, write):
        self.client, self.name, self.record = client, name, client.store.contexts[name]
        if write:
            if self.record.writer is not None:
                raise Busy(name)
            self.record.writer = self

    @property
    def committed(self):
        return len(self.record.tokens)

    @property
    def layers(self):
        return list(self.record.spec.layers)

    def fork(self, name, tokens):
        fork = self.client.create(name, self.record.spec)
        fork.record.tokens = self.record.tokens[:tokens].copy()
        fork.record.rows = [(k[:tokens], v[:tokens]) for k, v in self.record.rows]
        return fork

    def close(self):
        if self.record.writer is self:
            self.record.writer = None


class FakeQueue:
    def __init__(self, client):
        self.client, self.ticket = client, 0

    def close(self):
        pass

    def _ticket(self):
        self.ticket += 1
        return self.ticket

    def wait(self, ticket, timeout_ms=0):
        assert 0 < ticket <= self.ticket

    def append(self, context, layer, position, k, v, queries=None):
        if context.record.writer is not context:
            raise NoLease(context.name)
        keys, values = context.record.rows[layer]
        if not context.committed <= position <= len(keys):
            raise OutOfRange(f"append at {position}, committed {context.committed}, rows {len(keys)}")
        shape = context.layers[layer]
        assert k.shape[1:] == (shape.kv_heads, shape.d_k) and k.is_contiguous() and v.is_contiguous()
        assert queries is None or queries.shape[1:] == (shape.query_heads, shape.d_k)
        keys[position:], values[position:] = list(k.clone()), list(v.clone())

    def submit_append(self, context, layer, position, k, v, queries=None):
        self.append(context, layer, position, k, v, queries)
        return self._ticket()

    def commit(self, context, position, tokens, *, seal=False):
        ids, record = token_array(tokens), context.record
        if position != context.committed:
            raise OutOfRange(f"commit at {position}, committed {context.committed}")
        for layer, (keys, _) in zip(record.spec.layers, record.rows):
            if layer.kind == "global" and len(keys) < position + ids.size:
                raise OutOfRange("a layer lacks rows")
        record.tokens = np.concatenate([record.tokens, ids])
        record.seals += seal

    def truncate(self, context, position):
        context.record.tokens = context.record.tokens[:position]
        context.record.rows = [(k[:position], v[:position]) for k, v in context.record.rows]

    def read(self, context, layer, position, count, k, v):
        if position + count > context.committed:
            raise OutOfRange("read")
        keys, values = context.record.rows[layer]
        k[:] = torch.stack(keys[position : position + count]).float()
        v[:] = torch.stack(values[position : position + count]).float()

    def submit_attend(self, context, layer, q, **options):
        """Double precision, so that comparisons show the client's errors."""
        sent = {name: value.clone() if torch.is_tensor(value) else value for name, value in options.items()}  # a slot's bytes, not the caller's
        self.client.attends.append((layer, {**sent, "tokens": q.shape[0]}))
        begin, end, shape = options["begin"], options["end"], context.layers[layer]
        if not 0 <= begin < end <= context.committed:
            raise OutOfRange(f"attend to {begin}..{end} of {context.committed}")
        keys, values = context.record.rows[layer]
        k = torch.stack(keys[begin:end]).double().repeat_interleave(shape.query_heads // shape.kv_heads, 1)
        v = torch.stack(values[begin:end]).double().repeat_interleave(shape.query_heads // shape.kv_heads, 1)
        logits = torch.einsum("thd,nhd->thn", q.double(), k) * shape.scale
        if shape.softcap:
            logits = shape.softcap * torch.tanh(logits / shape.softcap)
        result = AttendResult.new(q, q.shape[0], shape.query_heads, v.shape[2])
        result.out[:] = torch.einsum("thn,nhd->thd", logits.softmax(-1), v).float()
        result.lse[:] = logits.logsumexp(-1).float()
        result.rows[:] = end - begin
        return self._ticket(), result
