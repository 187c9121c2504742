"""magicpigctl bench: that its figures agree with one another and with the daemon's own, and that it leaves nothing behind. No speed is tested."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time

import pytest
from cli_daemon import MAGICPIGCTL, ctl, good

OK, FAILED, USAGE, NO_DAEMON = range(4)
SMALL = ("--tokens", "8192", "--heads", "8/2/64", "--seconds", "1")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/magicpig" / f"limit-{os.uname().nodename}"


def test_figures_agree(daemon, cache):
    def counted():
        return json.loads(good(daemon.ctl("status", "--json")))

    before = counted()
    seen = json.loads(good(daemon.ctl("bench", "--json", *SMALL, "--flights", "3")))
    after = counted()
    assert (seen["tokens"], seen["query_heads"], seen["kv_heads"], seen["d"], seen["in_flight"]) == (8192, 8, 2, 64, 3)
    assert seen["memory"]["row_bytes"] == 256 and seen["memory"]["threads"] == 2
    for name in ("nop", "dense", "sampled", "piped"):
        times = seen[name]
        assert times["count"] > 0 and 0 < times["p50_us"] <= times["p90_us"] <= times["p99_us"] <= times["p999_us"]
    for name in ("dense", "sampled"):  # one after another: so many a second, each in its time
        assert seen[name]["service_us"] <= seen[name]["p999_us"]
        assert seen[name]["per_s"] * seen[name]["p50_us"] / 1e6 <= 2.001  # half of them take at least the median
    assert seen["dense"]["rows_read"] == 2 * 8192
    # 4 query heads a group, 1 % each; rows that several of them want count once
    assert 2 * 8192 * 0.01 < seen["sampled"]["rows_read"] < 4 * 2 * 8192 * 0.015
    # Everything the daemon counted is in it, but for some answers nobody's time
    attends = sum(seen[name]["count"] for name in ("dense", "sampled", "piped"))
    assert attends <= after["attends"] - before["attends"] <= attends + 100000
    assert after["appended_rows"] - before["appended_rows"] == 8192
    assert after["contexts"] == before["contexts"] == 0 and after["errors"] == before["errors"]
    # top compares with what was measured
    lines = dict(line.split(" ", 1) for line in cache.read_text().splitlines())
    assert float(lines["stream_bytes_per_s"]) == pytest.approx(seen["memory"]["stream_bytes_per_s"], abs=1)
    top = json.loads(good(daemon.ctl("top", "--json", "-n", "1")))
    assert top["limit_bytes_per_s"] == float(lines["stream_bytes_per_s"])


def test_text(daemon, cache):
    lines = good(daemon.ctl("bench", *SMALL)).splitlines()
    assert lines[0] == "context     8,192 tokens of one layer, 8 query heads on 2 KV heads of d 64"
    assert re.fullmatch(r"memory      stream [\d.]+ [MG]iB/s, rows of 256 bytes here and there [\d.]+ [MG]iB/s, 2 threads", lines[1])
    assert re.fullmatch(r"append      [\d.]+ [KMG]iB/s as stored, index in [\d.]+ \w+", lines[2])
    assert lines[3].split() == "REQUEST COUNT P50 P90 P99 P99.9 /S READ/S OF MEMORY".split()
    assert [re.split("  +", line.strip())[0] for line in lines[4:8]] == ["nop", "attend, dense", "attend, 1 %", "4 in flight"]
    assert re.fullmatch(r"sampled answers come [\d.]+ times sooner than dense ones", lines[8])


def test_interrupted(daemon, cache):
    process = subprocess.Popen(
        [MAGICPIGCTL, "--socket", str(daemon.socket), "bench", *SMALL[:-1], "60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 20
    while f"magicpigctl-bench-{process.pid}" not in good(daemon.ctl("ls", "--names")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (FAILED, "", "magicpigctl bench: interrupted\n")
    assert good(daemon.ctl("ls")) == "no contexts\n"
    assert not cache.exists()


def test_what_does_not_fit(daemon, cache):
    result = daemon.ctl("bench", "--tokens", "1000000")
    assert result.returncode == FAILED and result.stdout == ""
    assert re.fullmatch(
        r"magicpigctl bench: the pool has not twice the [\d.]+ GiB that 1000000 tokens take; give fewer --tokens or drop contexts\n", result.stderr
    )


def test_memory_alone(cache):
    assert re.fullmatch(r"memory      stream .*/s, rows of 512 bytes here and there .*/s, \d+ threads?\n", good(ctl("bench", "--memory")))
    assert "stream_bytes_per_s" in cache.read_text()
    assert json.loads(good(ctl("bench", "--memory", "--json")))["memory"]["gather_bytes_per_s"] > 0


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    result = ctl("bench", "--memory")
    assert result.returncode == OK and result.stderr == "magicpigctl bench: the limit is not kept for top: Not a directory\n"


def test_wrong_usage():
    for arguments in (["extra"], ["-t", "1"], ["-s", "0"], ["-f", "17"], ["--budget", "0"], ["--budget", "1.1"], ["--budget", "x"],
                      ["--heads", "8/3/64"], ["--heads", "8/2"], ["--heads", "8/2/63"], ["--heads", "8/2/64x"]):  # fmt: skip
        assert ctl("bench", *arguments).returncode == USAGE, arguments


def test_no_daemon(tmp_path):
    assert ctl("--socket", str(tmp_path / "none"), "bench").returncode == NO_DAEMON
