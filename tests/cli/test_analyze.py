"""magicpigctl analyze: what it predicts against what answers do, its table, JSON and page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import pytest
from cli_daemon import ctl, good

OK, FAILED, USAGE, NO_DAEMON, NOT_FOUND = range(5)
TOKENS, SPREADS = 12000, (0.25, 1.0, 2.0, 3.0)  # of the logits, by layer: from flat to sharp
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def zoo(daemon):
    """A context whose layers differ in how sharp attention is, seen in use; its name and the true error of each layer at 2 %."""
    magicpig = pytest.importorskip("magicpig")
    import numpy

    random = numpy.random.default_rng(3)
    layer = magicpig.Layer(query_heads=6, kv_heads=2, d_k=64, signature_bits=2)
    name, true_error = "z<o>o", {}
    with magicpig.Client(str(daemon.socket)) as client, client.queue(slot_bytes=1 << 20) as queue:
        context = client.create(name, magicpig.Spec([layer] * len(SPREADS), seed=7))
        for number in range(len(SPREADS)):
            k, v = (random.standard_normal((TOKENS, 2, 64), dtype=numpy.float32) for _ in range(2))
            queue.append(context, number, 0, k, v)
        queue.commit(context, 0, numpy.arange(TOKENS, dtype=numpy.uint32), seal=True)
        for number, spread in enumerate(SPREADS):
            deviations = []
            for step in range(80):
                q = (spread * random.standard_normal((6, 64))).astype(numpy.float32)
                exact = queue.attend(context, number, q, proposal="dense").lse
                for seed in range(10):
                    sampled = queue.attend(context, number, q, proposal="signature", budget=0.02, seed=1000 * step + seed)
                    deviations.append(numpy.exp(sampled.lse - exact) - 1)
            true_error[number] = float(numpy.sqrt(numpy.mean(numpy.square(deviations))))
        yield name, true_error
        context.close()
        client.drop(name)


def test_predictions_hold(daemon, zoo):
    name, true_error = zoo
    seen = json.loads(good(daemon.ctl("analyze", name, "--json", "--budget", "0.02")))
    assert seen["heads_known"] == 2 * len(SPREADS) and seen["committed"] == TOKENS
    # Everything is seeded, down to which answers the daemon looks at (one in 64 of a head: a dozen). Sharp heads differ much from query to query,
    # so a layer's two heads are taken together.
    for head in seen["heads"]:
        assert head["rows"] == TOKENS and head["samples"] >= 12
    for number, truth in true_error.items():
        told = [head["error_at_budget"] for head in seen["heads"] if head["layer"] == number]
        assert (sum(e * e for e in told) / len(told)) ** 0.5 == pytest.approx(truth, rel=0.35)
    gains = [layer["gain"] for layer in seen["layers"]]
    assert gains == sorted(gains) and gains[0] < 1.5 < gains[-1]
    assert [layer["advice"] for layer in seen["layers"]][0::3] == ["dense", "sample"]
    concentration = [layer["mass_1"] for layer in seen["layers"]]
    assert concentration == sorted(concentration)
    assert 1 < seen["gain"] < max(gains)


def test_what_is_asked_for_changes_the_answer(daemon, zoo):
    name, _ = zoo
    loose, strict = (json.loads(good(daemon.ctl("analyze", name, "--json", "-e", e, "-b", b))) for e, b in (("0.1", ".1"), ("0.01", ".005")))
    assert loose["needed_share"] < strict["needed_share"] and loose["gain"] > strict["gain"]
    assert loose["layers_paying"] >= strict["layers_paying"]
    for a, b in zip(loose["heads"], strict["heads"]):
        assert a["error_at_budget"] < b["error_at_budget"]


def test_table(daemon, zoo):
    lines = good(daemon.ctl("analyze", zoo[0])).splitlines()
    assert lines[0] == "z<o>o: 12,000 tokens, 8 of 8 KV heads seen in use"
    assert re.fullmatch(
        r"At an error of 2 %, [\d.]+ % of the rows are read: \d of 4 layers gain by sampling, [\d.]+ times less to read in all\.", lines[1]
    )
    assert lines[2].split() == "layer heads n_eff in 1 % error needs gain advice".split()
    assert [line.split()[:2] for line in lines[3:]] == [[str(n), "2/2"] for n in range(4)]
    assert lines[3].endswith("stay dense") and lines[6].endswith("sample")
    heads = good(daemon.ctl("analyze", zoo[0], "--heads")).splitlines()
    assert [line.split()[:2] for line in heads[3:]] == [[str(n), str(h)] for n in range(4) for h in range(2)]


def test_page(daemon, zoo, tmp_path):
    page = tmp_path / "page.html"
    assert good(daemon.ctl("analyze", zoo[0], "--html", str(page))).endswith(f"{page} is written\n")
    text = page.read_text()
    assert "z&lt;o&gt;o" in text and "z<o>o" not in text
    assert not re.search(r"https?://|src=|<script|@import|url\(", text)  # nothing from elsewhere
    assert text.count('<table class="map">') == 4 and text.count("<td style") == 4 * 8
    result = daemon.ctl("analyze", zoo[0], "--html", str(tmp_path / "none/page.html"))
    assert result.returncode == FAILED and result.stdout == ""
    assert result.stderr == f"magicpigctl analyze: cannot write {tmp_path}/none/page.html: No such file or directory\n"
    assert os.listdir(tmp_path) == ["page.html"]


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
def test_page_in_a_browser(daemon, zoo, tmp_path):
    page = tmp_path / "page.html"
    good(daemon.ctl("analyze", zoo[0], "--html", str(page)))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    body = dom[dom.index("<body") :]
    rows = re.findall(r"<tr><th>(\d+)</th>(.*?)</tr>", body)
    assert len(rows) == 5 * 4  # four maps and a table of four layers
    seen = {(h["layer"], h["kv_head"]): h for h in json.loads(good(daemon.ctl("analyze", zoo[0], "--json")))["heads"]}
    for number, cells in rows[:4]:  # the first map: gain
        values = re.findall(r'<td style="background:rgb\((\d+),(\d+),(\d+)\)"[^>]*>([\d.]+)</td>', cells)
        assert len(values) == 2
        for head, (*colour, value) in enumerate(values):
            assert float(value) == pytest.approx(seen[int(number), head]["gain"], abs=0.051)
            assert all(0 <= int(c) <= 255 for c in colour)
    assert "layers gain by sampling" in body


def test_nothing_seen_yet(daemon, book):
    result = daemon.ctl("analyze", "book")
    assert result.returncode == FAILED and result.stdout == ""
    assert "no head has been seen in use" in result.stderr and "64th" in result.stderr


def test_errors(daemon, tmp_path):
    result = daemon.ctl("analyze", "nothing")
    assert result.returncode == NOT_FOUND and "'nothing'" in result.stderr
    for arguments in ([], ["a", "b"], ["a", "-e", "0"], ["a", "-e", "2"], ["a", "-b", "x"], ["a", "-b", "nan"]):
        assert daemon.ctl("analyze", *arguments).returncode == USAGE
    assert ctl("--socket", str(tmp_path / "none"), "analyze", "x").returncode == NO_DAEMON
