"""Gpu and Plan by addresses: answers, failures, another daemon, and who closes whom."""

import time

import numpy as np
import pytest
import torch

import magicpig
from magicpig import cuda

HEADS, KV_HEADS, D, ROWS, SINKS = 4, 2, 64, 200, 4


@pytest.fixture(scope="module")
def daemon(start_daemon, device):
    torch.empty(1, device=device)  # CUDA's context is current
    with start_daemon("pytest-cuda", pool_size="256M") as daemon:
        yield daemon


@pytest.fixture
def queue(client):
    with client.queue(entries=4, slots=8, slot_bytes=1 << 16) as queue:
        yield queue


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fill(client, name="x", seed=0, seal=True):
    """A context of one layer with ROWS committed rows."""
    random = np.random.default_rng(seed)
    layer = magicpig.Layer(query_heads=HEADS, kv_heads=KV_HEADS, d_k=D, signature_bits=2, row_dtype="f16")
    context = client.create(name, magicpig.Spec([layer]))
    k, v = (random.standard_normal((ROWS, KV_HEADS, D), np.float32) for _ in range(2))
    queries = random.standard_normal((64, HEADS, D), np.float32)
    with client.queue() as queue:
        queue.append(context, 0, 0, k, v, queries)
        queue.commit(context, 0, np.arange(ROWS, dtype=np.uint32), seal=seal)
    return context, random.standard_normal((HEADS, D), np.float32)


class Ask:
    """A step over rows [SINKS, ROWS) of the daemon, without own rows."""

    def __init__(self, device, q):
        self.device = device
        self.q = torch.from_numpy(q).to(device)
        self.out, self.lse = torch.zeros_like(self.q), torch.zeros(HEADS, device=device)
        self.step = cuda.Step(q=self.q.data_ptr(), out=self.out.data_ptr(), lse=self.lse.data_ptr())

    def run(self, plan):
        stream = torch.cuda.current_stream().cuda_stream if self.device.type == "cuda" else 0
        plan.submit(self.step, stream)
        plan.merge(self.step, stream)
        synchronize(self.device)
        return self.out.cpu().numpy(), self.lse.cpu().numpy()


def test_an_answer(device, client, queue):
    context, q = fill(client)
    with cuda.Gpu(queue, timeout_ms=20_000) as gpu, cuda.Plan(gpu, [context], 0, dtype="f32", proposal="dense", sinks=SINKS) as plan:
        info = gpu.info
        assert info.device and info.entries == 4 and info.slots == 8 and info.compute_major >= 8
        assert gpu.begin() is False
        out, lse = Ask(device, q).run(plan)
        gpu.check()
        answer = gpu.last_answer()
        assert (answer.sequence, answer.committed) == (0, ROWS) and answer.rows_read >= ROWS - SINKS and answer.service_ns > 0
        trips = gpu.round_trips(8)
        assert trips.dtype == np.float32 and trips.shape == (8,) and (trips > 0).all()
        with pytest.raises(magicpig.Busy):
            queue.nop()
        with pytest.raises(magicpig.Busy):
            cuda.Gpu(queue)
    expected = queue.attend(context, 0, q, proposal="dense", begin=SINKS)  # taken back: the same queue serves
    assert np.abs(out - expected.out[0]).max() < 1e-5 and np.abs(lse - expected.lse[0]).max() < 1e-5


def test_signatures_and_requests_that_do_nothing(device, client, queue):
    context, q = fill(client)
    with cuda.Gpu(queue) as gpu:
        plan, ask = cuda.Plan(gpu, [context], 0, dtype="f32"), Ask(device, q)
        signature = torch.zeros(HEADS, D, dtype=torch.int8, device=device)
        scale = torch.zeros(HEADS, device=device)
        plan.sign(ask.step, signature.data_ptr(), scale.data_ptr())
        gpu.nop(3)
        gpu.wait(3)
        synchronize(device)
        gpu.check()
        assert (signature.abs().amax(1) == 127).all() and (scale > 0).all()


def test_a_plan_before_the_seal_is_refreshed(device, client, queue):
    context, q = fill(client, seal=False)
    ask = Ask(device, q)
    places = torch.zeros(HEADS, D, dtype=torch.int8, device=device), torch.zeros(HEADS, device=device)
    with cuda.Gpu(queue) as gpu:
        plan = cuda.Plan(gpu, [context], 0, dtype="f32")
        with pytest.raises(magicpig.Again, match="no signature parameters yet"):
            plan.sign(ask.step, *(place.data_ptr() for place in places))
        with client.queue() as other:
            other.commit(context, ROWS, np.zeros(0, np.uint32), seal=True)
        plan.refresh()
        plan.sign(ask.step, *(place.data_ptr() for place in places))


def test_a_prompt_from_the_gpu(device, client):
    """Rows, tickets, commits, the report; what fails, and what is known of it."""
    layer = magicpig.Layer(query_heads=HEADS, kv_heads=KV_HEADS, d_k=D, row_dtype="f16")
    context = client.create("prompt", magicpig.Spec([layer]))
    k = torch.randn(ROWS, KV_HEADS, D, generator=torch.Generator().manual_seed(3)).to(device)

    def rows(first, count):
        return cuda.Rows(layer=0, dtype=0, first=first, count=count, k=k[first:].data_ptr(), v=k[first:].data_ptr())

    with cuda.Ingest(client, slot_bytes=1 << 16, slots=2) as ingest:
        ticket = ingest.layer(context, rows(0, ROWS))
        ingest.release(ticket)
        ingest.commit(context, 0, np.arange(ROWS), seal=True)
        report = ingest.finish()
        assert report.rows == ROWS and report.commits == 1 and report.appends > 1 and report.bytes > ROWS * KV_HEADS * D * 8
        assert ingest.released(ticket) and ingest.failure() is None and context.committed == ROWS
        ingest.layer(context, rows(ROWS - 1, 1))  # behind what is committed
        with pytest.raises(magicpig.OutOfRange):
            ingest.finish()
        failed = ingest.failure()
        assert (failed.status, failed.layer, failed.first, failed.context) == (magicpig.OutOfRange.status, 0, ROWS - 1, "prompt")
        assert ingest.recover() is False and ingest.failure() is None
        with pytest.raises(magicpig.InvalidArgument, match="layer"):
            ingest.layer(context, cuda.Rows(layer=3, count=1, k=k.data_ptr(), v=k.data_ptr()))
    with pytest.raises(ValueError, match="closed"):
        ingest.finish()
    with client.queue() as queue:
        assert np.array_equal(queue.read(context, 0, 0, ROWS)[0], k.cpu().half().float().numpy())


def test_a_context_closed_under_an_ingest(device, daemon, client):
    """It is known to the ingest until that has finished, failed or not; then its lease is given back. Other clients' contexts are refused."""
    spec = magicpig.Spec([magicpig.Layer(query_heads=HEADS, kv_heads=KV_HEADS, d_k=D, row_dtype="f16")])
    k = torch.zeros(ROWS, KV_HEADS, D, device=device)
    rows = cuda.Rows(layer=0, dtype=0, count=ROWS, k=k.data_ptr(), v=k.data_ptr())
    with magicpig.Client(str(daemon.socket)) as other, cuda.Ingest(client, slot_bytes=1 << 16, slots=2) as ingest:
        for name, end in (("finished", ingest.finish), ("recovered", ingest.recover)):
            with client.create(name, spec) as context:
                ingest.layer(context, rows)
                ingest.commit(context, 0, np.arange(ROWS))
                if end == ingest.recover:
                    ingest.commit(context, ROWS, np.arange(1))  # no such row
            with pytest.raises(ValueError, match="closed"):
                ingest.layer(context, rows)
            with pytest.raises(magicpig.Busy):
                other.open(name, write=True)
            if end == ingest.recover:
                with pytest.raises(magicpig.OutOfRange):
                    ingest.finish()
                assert ingest.failure().context == name
            end()
            with other.open(name, write=True) as again:
                assert again.committed == ROWS
                with pytest.raises(ValueError, match="another client"):
                    ingest.layer(again, rows)


def test_what_is_refused(device, client, queue):
    context, _ = fill(client)
    with cuda.Gpu(queue) as gpu:
        with pytest.raises(magicpig.LimitReached, match="open the queue with slot_bytes"):
            cuda.Plan(gpu, [context], 0, tokens=256)
        with pytest.raises(ValueError, match="proposal"):
            cuda.Plan(gpu, [context], 0, proposal="best")
        with pytest.raises(ValueError, match="dtype"):
            cuda.Plan(gpu, [context], 0, dtype="i8")
        with pytest.raises(ValueError, match="layer"):
            cuda.Plan(gpu, [context], 1)
        with pytest.raises(magicpig.InvalidArgument, match="step.q"):
            cuda.Plan(gpu, [context], 0).submit(cuda.Step())
        with pytest.raises(magicpig.InvalidArgument, match="no slot 9"):
            gpu.nop(9)
        with pytest.raises(magicpig.InvalidArgument, match="timeout_ms"):
            cuda.Gpu(client.queue(), timeout_ms=-1)


def test_who_closes_whom(device, client):
    context, q = fill(client)
    queue = client.queue(slot_bytes=1 << 16)
    gpu = cuda.Gpu(queue)
    plans = [cuda.Plan(gpu, [context], 0) for _ in range(2)]
    context.close()
    with pytest.raises(ValueError, match="closed"):
        plans[0].refresh()
    queue.close()
    for call in (gpu.begin, gpu.failure, gpu.recover, lambda: gpu.nop(0)):
        with pytest.raises(ValueError, match="detached"):
            call()
    gpu.close()
    cuda.Gpu(client.queue())  # nobody holds it: the client closes it


def test_a_daemon_that_stands_still(device, daemon, client, queue):
    context, q = fill(client)
    with cuda.Gpu(queue, timeout_ms=1000) as gpu:
        plan, ask = cuda.Plan(gpu, [context], 0, dtype="f32", proposal="dense", sinks=SINKS), Ask(device, q)
        gpu.begin()
        expected, _ = ask.run(plan)
        gpu.check()
        daemon.freeze()
        try:
            assert np.isnan(ask.run(plan)[0]).all()
            failed = gpu.failure()
            assert (failed.status, failed.slot) == (magicpig.TimedOut.status, 0)
            with pytest.raises(magicpig.TimedOut, match=r"recover\(\)"):
                gpu.check()
            with pytest.raises(magicpig.Retry, match="mpig_cuda_recover"):
                gpu.begin()
            with pytest.raises(magicpig.TimedOut):
                gpu.recover()
        finally:
            daemon.thaw()
        for _ in range(100):
            try:
                assert gpu.recover() is False
                break
            except magicpig.TimedOut:
                time.sleep(0.05)
        assert np.array_equal(ask.run(plan)[0], expected)


def test_another_daemon(device, daemon, client, queue):
    """Between steps begin() finds it, within one recover(); the same plans serve."""
    context, q = fill(client)
    with cuda.Gpu(queue, timeout_ms=1000) as gpu:
        plan, ask = cuda.Plan(gpu, [context], 0, dtype="f32", proposal="dense", sinks=SINKS), Ask(device, q)
        gpu.begin()
        expected, _ = ask.run(plan)
        gpu.check()
        daemon.kill_and_restart()
        assert gpu.begin() is True and gpu.begin() is False
        assert np.array_equal(ask.run(plan)[0], expected)
        daemon.process.kill()
        daemon.process.wait()
        assert np.isnan(ask.run(plan)[0]).all()
        daemon.kill_and_restart()
        assert gpu.recover() is True
        assert np.array_equal(ask.run(plan)[0], expected)


def test_the_library_says_that_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("MAGICPIG_CUDA_LIBRARY", str(tmp_path / "none.so"))
    monkeypatch.setattr("magicpig._cuda._library", None)
    assert "MAGICPIG_CUDA_LIBRARY" in cuda.available() and str(tmp_path) in cuda.available()
    with pytest.raises(ImportError, match="none.so"):
        cuda.Gpu(None)
