"""The quick report as `make quality-quick` runs it: the daemon on the committed tensors, held to its thresholds."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import document
import heads
import magicpig
import settings
from conftest import BUILD, TREE
from private_daemon import PrivateDaemon


@pytest.fixture(scope="module")
def tensors():
    return document.load(TREE / "tools/quality/fixture.npz")


@pytest.fixture(scope="module")
def client():
    if not (BUILD / "magicpigd").exists():
        pytest.skip("magicpigd is not built")
    with PrivateDaemon(BUILD / "magicpigd", pool_size="512M", instance="quality-test") as private:
        with magicpig.Client(str(private.socket)) as client:
            yield client


def test_the_fixture_is_small():
    assert (TREE / "tools/quality/fixture.npz").stat().st_size <= 4_000_000


def test_quick_report(tmp_path):
    if not (BUILD / "magicpigd").exists():
        pytest.skip("magicpigd is not built")
    for name in ("magicpigd", "libmagicpig.so.0"):
        shutil.copy(BUILD / name, tmp_path)
    command = [sys.executable, TREE / "tools/quality/quality.py", "--quick", "--seeds", "2", "--build", tmp_path]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    report = json.loads((tmp_path / "quality/quick.json").read_text())
    assert {line["setting"] for line in report["summary"]} >= {settings.REFERENCE, settings.DEFAULT, settings.MATCHED, "dense"}
    assert (tmp_path / "quality/quick.html").read_text().count("<svg") >= 5


def test_the_reference_is_full_attention(tensors):
    """heads.reference merges no parts; here its two parts are, and dense attention by hand is the third opinion."""
    ref = heads.reference(tensors, 0)
    position, k, v = int(tensors.positions[2]), *(x[0, :, 0].astype(np.float64) for x in (tensors.k, tensors.v))
    logits = tensors.scale * tensors.q[0, 2].astype(np.float64) @ k[: position + 1].T
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    out = weights @ v[: position + 1] / weights.sum(-1, keepdims=True)
    assert np.allclose(out, ref.out[2], rtol=1e-9)
    mine = np.exp(ref.exact_lse[2] - ref.lse[2])
    assert np.allclose(mine + ref.daemon_mass[2], 1, atol=1e-9)


def test_a_probe_sees_which_rows_are_read(tensors, client):
    """Every heavy row with `dense`; none with a budget of top-k that has room for fewer rows than there are; exactly those of top-k."""
    from evaluate import context_of

    references = [heads.reference(tensors, m) for m in range(len(tensors.measured))]
    probe = heads.Probe(tensors, references)
    with context_of(client, probe.document, settings.Index(), 1, v=probe.v) as (queue, context, _):
        read, total, pi = probe.run(queue, context, settings.Setting("dense", "dense"), 0, 1, references)
        assert total.sum() > 100 and np.array_equal(read, total) and pi.min() > 0.999
        one_row = 1 / (tensors.window_start - document.SINKS)
        read, _, _ = probe.run(queue, context, settings.Setting("topk", "topk"), one_row, 1, references)
        assert np.array_equal(read, np.minimum(total, 1))
