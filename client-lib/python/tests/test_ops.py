"""The operators of torch: answers, CUDA graphs, torch.compile, failures. Over CPU tensors where there is no GPU."""

import os

import pytest
import torch

import magicpig
from magicpig import cuda, ops
from gpu_world import DTYPES, LAYOUTS, Shape, World, synchronize, worst

TOLERANCE = {"bf16": 4e-3, "f16": 5e-4, "f32": 1e-5}  # of outputs below 1: half a unit in the last place, and what fp32 rounds


@pytest.fixture
def client(daemon_socket, gpu_operators):
    with magicpig.Client(daemon_socket) as client:
        yield client


@pytest.fixture
def make(client, device):
    worlds = []

    def make(*arguments, **options):
        worlds.append(World(client, device, *arguments, **options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


CASES = [
    *[Shape(dtype=dtype, layout=layout) for dtype in DTYPES for layout in LAYOUTS],
    Shape(contexts=3, layout="paged"),
    Shape(contexts=2, tokens=3, layout="ring"),
    Shape(contexts=3, tokens=2, heads=8, kv_heads=1, d=128),
    Shape(heads=6, kv_heads=6, d=96, dtype="f16"),
    Shape(softcap=5.0, dtype="f32"),
    Shape(split=4, rows=301, committed=300, dtype="f32"),  # the daemon is asked for nothing
    Shape(split=300, rows=301, sinks=0, dtype="f32"),      # one own row
]


@pytest.mark.parametrize("shape", CASES, ids=str)
def test_equals_attention(make, device, shape):
    world = make(shape)
    with world.attention() as (attention, gpu):
        gpu.begin()
        out, lse = world.attend(attention)
        synchronize(device)
        gpu.check()
        expected, expected_lse = world.expected()
        assert out.dtype == world.q.dtype and out.shape == expected.shape
        assert worst(out, expected) <= TOLERANCE[shape.dtype]
        assert worst(lse, expected_lse) <= 1e-3
        if not shape.sinks:
            return
        # the comparison can fail: without the sinks the answer is elsewhere
        broken = world.k.clone()
        broken[...] = 0
        out, _ = attention(world.q, broken, broken, world.split, world.rows, **world.options)
        assert worst(out, expected) > 10 * TOLERANCE[shape.dtype]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_own_rows_first(make, device, layout):
    """The other order: in one call, in three, and of a step without own rows after one that had some."""
    world = make(Shape(contexts=2, tokens=2, layout=layout))
    with world.attention(own_first=True) as (attention, gpu):
        assert attention.plan.own_first
        out, lse = torch.empty_like(world.q), torch.empty(2, 2, 4, device=device)
        for step in range(3):
            world.move(step)
            whole, whole_lse = world.attend(attention)
            attention.window(world.q, world.k, world.v, world.split, world.rows, **world.options)
            attention.submit(world.q, world.split, world.rows)
            attention.merge(out, lse)
            synchronize(device)
            gpu.check()
            expected, expected_lse = world.expected(step)
            assert worst(out, expected) < TOLERANCE["bf16"] and worst(lse, expected_lse) < 1e-4
            assert torch.equal(whole, out) and torch.equal(whole_lse, lse)
        attention.submit(world.q, world.split, world.rows)
        attention.merge(out, lse)
        synchronize(device)
        gpu.check()
        assert worst(lse, expected_lse) > 0.01


def test_who_is_asked_last(make):
    """Own rows come first where the daemon goes by them."""
    world = make(Shape())
    for options, first in {
        (): False,  # dense
        (("proposal", "default"),): True,
        (("proposal", "signature"), ("budget", 0.1)): False,
        (("proposal", "signature"), ("budget", 0.1), ("error_target", 0.1)): True,
        (("proposal", "signature"), ("error_target", 0.1), ("delta", 0.1)): True,
        (("proposal", "default"), ("own_first", False)): False,
    }.items():
        with world.attention(**dict(options)) as (attention, _):
            assert attention.plan.own_first == first, options


def test_in_three(make, device):
    """submit, window and merge by themselves; any strides; base 2; the daemon's part alone, merged by hand."""
    world = make(Shape(contexts=2, tokens=2, dtype="f32"))
    with world.attention(count=2) as ((one, two), gpu):
        q = torch.empty(2, 4, 2, 64, device=device).transpose(1, 2).copy_(world.q)
        out = torch.empty(2, 4, 2, 64, device=device).transpose(1, 2)
        lse = torch.empty(2, 2, 4, device=device)
        two.flags = cuda.LSE2
        two.submit(q, world.split, world.rows)
        one.submit(q, world.split, world.rows)
        one.window(q, world.k, world.v, world.split, world.rows)
        alone, alone_lse = torch.empty_like(out), torch.empty_like(lse)
        one.merge(alone, alone_lse, daemon_only=True)
        two.window(q, world.k, world.v, world.split, world.rows)
        two.merge(out, lse)
        synchronize(device)
        gpu.check()
        expected, expected_lse = world.expected()
        assert worst(out, expected) < 1e-5 and worst(lse * torch.log(torch.tensor(2.0)), expected_lse) < 1e-5
        k, v = world.all_k[:, 4:260], world.all_v[:, 4:260]
        logits = torch.einsum("bthd,bnhd->bhtn", q.double(), k.double().repeat_interleave(2, 2)) / 8
        assert worst(alone_lse, logits.logsumexp(-1).transpose(1, 2)) < 1e-5
        theirs = torch.einsum("bhtn,bnhd->bthd", logits.softmax(-1), v.double().repeat_interleave(2, 2))
        assert worst(alone, theirs) < 1e-5


def test_without_own_rows(make, device):
    """No split and no rows: the daemon attends all that is committed but the plan's window."""
    world = make(Shape(dtype="f32"))
    with world.attention(window=40) as (attention, gpu):
        out, lse = torch.empty_like(world.q), torch.empty(1, 1, 4, device=device)
        attention.submit(world.q)
        attention.merge(out, lse)
        synchronize(device)
        gpu.check()
        expected = torch.einsum("bthd,bnhd->bhtn", world.q.double(), world.all_k[:, 4:260].double().repeat_interleave(2, 2)) / 8
        assert worst(lse, expected.logsumexp(-1).transpose(1, 2)) < 1e-5


def test_replays(make, device):
    """Several steps of two layers: captured once where there is a GPU, with counters that go up by themselves."""
    world = make(Shape(contexts=2, layout="ring", dtype="bf16"))
    with world.attention(count=2) as (layers, gpu):
        outs = []

        def step():
            world.rows.add_(1)
            outs[:] = [world.attend(attention)[0] for attention in layers]

        if device.type == "cuda":
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                step()
            side.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            run = graph.replay
        else:
            run = step
        for number in range(1, 7):
            world.q.copy_(world.queries(number))
            if number == 1:
                world.rows.fill_(world.shape.rows)
            gpu.begin()
            run()
            synchronize(device)
            gpu.check()
            for out in outs:
                assert worst(out, world.expected(number)[0]) <= TOLERANCE["bf16"]
        assert gpu.last_answer().sequence >= 6 * 2 * 2 - 1


class Layers(torch.nn.Module):
    """What a model does of it: several layers in a row, with work between and around the operators' parts."""

    def __init__(self, attentions, options):
        super().__init__()
        self.attentions, self.options = attentions, options

    def forward(self, q, k, v, split, rows):
        rows.add_(1)
        for attention in self.attentions:
            out, lse = attention(q, k, v, split, rows, **self.options)
            q = q + out * torch.sigmoid(lse)[..., None].to(q.dtype)
        one, out = self.attentions[0], torch.empty_like(q)
        one.submit(q, split, rows)
        one.window(q, k, v, split, rows, **self.options)
        one.merge(out)
        return out + 1


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiles_whole(make, device, layout, backend):
    """No graph break, the operators in their order, none dropped, and the counter moves."""
    if backend == "inductor" and (layout != "ring" or not (device.type == "cuda" or os.environ.get("MPIG_LONG"))):
        pytest.skip("compiled to code on a GPU and in make check-long, for one layout")
    world = make(Shape(contexts=2, layout=layout, dtype="f32"))
    with world.attention(count=2) as (layers, gpu), torch.no_grad():
        model = Layers(layers, world.options)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        for number in range(3):
            arguments = world.q, world.k, world.v, world.split, world.rows
            before = gpu.last_answer().sequence
            world.rows.fill_(world.shape.rows + number - 1)
            expected = model(*arguments)
            world.rows.fill_(world.shape.rows + number - 1)
            out = compiled(*arguments)
            synchronize(device)
            gpu.check()
            assert worst(out, expected) < 1e-5
            assert int(world.rows[0]) == world.shape.rows + number
            assert number == 0 or gpu.last_answer().sequence - before == 2 * 2 * 3
        torch._dynamo.reset()


def test_compiled_into_graphs(make, device):
    """mode="reduce-overhead": what torch.compile captures by itself."""
    if device.type != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    world = make(Shape(layout="ring"))
    with world.attention() as (attention, gpu), torch.no_grad():
        torch._dynamo.reset()
        compiled = torch.compile(
            lambda q, rows: attention(q, world.k, world.v, world.split, rows, **world.options)[0] * 1.0,
            fullgraph=True,
            mode="reduce-overhead",
        )
        for number in range(6):
            out = compiled(world.queries(number), torch.full_like(world.rows, world.shape.rows + number))
            synchronize(device)
            gpu.check()
            assert worst(out, world.expected(number)[0]) <= 2 * TOLERANCE["bf16"]
        torch._dynamo.reset()


def test_opcheck(make, device):
    """torch's own tests of an operator: schema, fake tensors, dispatch under compilation."""
    world = make(Shape(layout="ring", dtype="f32"))
    with world.attention() as (attention, _):
        ring = world.options["ring_rows"]
        arguments = attention.order, world.q, world.k, world.v, world.split, world.rows, attention.number, ring, None, 0
        torch.library.opcheck(torch.ops.magicpig.attend.default, arguments, test_utils=("test_schema", "test_faketensor"))


def test_failures_are_nan(make, device):
    world = make(Shape(dtype="f32"))
    with world.attention() as (attention, gpu):
        out, _ = world.attend(attention)
        synchronize(device)
        good = out.clone()
        attention.submit(world.q, world.split, world.rows)
        attention.submit(world.q, world.split, world.rows)  # its slot is taken
        out, lse = world.attend(attention)
        synchronize(device)
        assert out.isnan().all() and lse.isnan().all()
        with pytest.raises(magicpig.Busy, match="slot 0"):
            gpu.check()
        gpu.recover()
        out, _ = world.attend(attention)
        synchronize(device)
        gpu.check()
        assert torch.equal(out, good)


def test_what_is_refused(make, device):
    world = make(Shape(contexts=2, layout="ring"))
    with world.attention() as (attention, _):
        q, k, v, split, rows = world.q, world.k, world.v, world.split, world.rows

        def refused(error, match, *arguments, **options):
            with pytest.raises(error, match=match):
                attention(*arguments, **options)

        refused(ValueError, "q: shape", q[:1], k, v, split, rows)
        refused(TypeError, "q: dtype", q.float(), k, v, split, rows)
        refused(ValueError, "q: the last dimension", q.transpose(2, 3).contiguous().transpose(2, 3), k, v, split, rows)
        refused(ValueError, "k: shape", q, k[:, :, :1], v, split, rows)
        refused(ValueError, "not laid out as k", q, k, v.float(), split, rows)
        refused(ValueError, "split", q, k, v, split.int(), rows)
        refused(ValueError, "rows", q, k, v, split, rows[:1])
        refused(ValueError, "ring_rows", q, k, v, split, rows, ring_rows=k.shape[1])
        refused(ValueError, "page_table", q, k, v, split, rows, page_table=torch.zeros(2, 3, device=device))
        refused(TypeError, "float64", q, k.double(), v.double(), split, rows)
        with pytest.raises(ValueError, match="out: shape"):
            attention.merge(q[:1])
        with pytest.raises(ValueError, match="lse"):
            attention.merge(torch.empty_like(q), torch.zeros(2, device=device))
        if device.type == "cuda":
            refused(ValueError, "is on cpu", q, k, v, split.cpu(), rows)
        with pytest.raises(ValueError, match="a GPU is needed"):
            ops.Attention(attention.plan, "meta")
    with pytest.raises(ValueError, match="closed"):
        attention(q, k, v, split, rows)
