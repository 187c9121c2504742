"""Fixtures of the command line tests."""

from __future__ import annotations

import pytest
from cli_daemon import Daemon


@pytest.fixture(scope="module")
def daemon():
    daemon = Daemon()
    yield daemon
    daemon.stop()


@pytest.fixture
def client(daemon):
    magicpig = pytest.importorskip("magicpig")
    with magicpig.Client(str(daemon.socket)) as client:
        yield client


@pytest.fixture
def book(client):
    """A context of 300 tokens: four layers, the second of them a sliding one."""
    import magicpig
    import numpy

    layer = magicpig.Layer(query_heads=6, kv_heads=2, d_k=64, signature_bits=2, paper=(8, 75))
    sliding = magicpig.Layer(kind="sliding", query_heads=6, kv_heads=2, d_k=64, window=128)
    random = numpy.random.default_rng(1)
    context = client.create("book", magicpig.Spec([layer, sliding, layer, layer], fingerprint=b"model", seed=7))
    with client.queue() as queue:
        for number in (0, 2, 3):
            k, v = (random.standard_normal((300, 2, 64), dtype=numpy.float32) for _ in range(2))
            queue.append(context, number, 0, k, v)
        queue.commit(context, 0, numpy.arange(300, dtype=numpy.uint32), seal=True)
    yield context
    context.close()
    try:
        client.drop("book")
    except magicpig.NotFound:
        pass
