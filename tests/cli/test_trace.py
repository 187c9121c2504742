"""magicpigctl trace: what clients ask is recorded, and asked again."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import time

import pytest
from cli_daemon import MAGICPIGCTL, good, refused

OK, FAILED, USAGE, NO_DAEMON, NOT_FOUND, PERMISSION = range(6)
TOKENS = 9000


@pytest.fixture(scope="module")
def novel(daemon):
    """A context long enough for samples, two layers of it, and a client that asks of it: ask(how many, keywords of attend)."""
    magicpig = pytest.importorskip("magicpig")
    import numpy

    random = numpy.random.default_rng(3)
    layer = magicpig.Layer(query_heads=4, kv_heads=2, d_k=64, signature_bits=2)
    with magicpig.Client(str(daemon.socket)) as client, client.queue() as queue:
        context = client.create("novel", magicpig.Spec([layer, layer], fingerprint=b"model", seed=7))
        for number in (0, 1):
            k, v = (random.standard_normal((TOKENS, 2, 64), dtype=numpy.float32) for _ in range(2))
            queue.append(context, number, 0, k, v + 1)
        queue.commit(context, 0, numpy.arange(TOKENS, dtype=numpy.uint32), seal=True)

        def ask(count, **how):
            for i in range(count):
                queue.attend(context, i % 2, random.standard_normal((1, 4, 64), dtype=numpy.float32), **{"seed": i, **how})

        yield ask
        context.close()
        client.drop("novel")


def is_recorded(daemon, name: str) -> bool:
    (shown,) = json.loads(good(daemon.ctl("show", "--json", name)))
    return shown["recorded"]


class Recorder:
    """magicpigctl trace record, until it records."""

    def __init__(self, daemon, *arguments: str, **options) -> None:
        self.process = subprocess.Popen(
            [MAGICPIGCTL, "--socket", str(daemon.socket), "trace", "record", *arguments],
            stdin=subprocess.DEVNULL, stdout=options.get("stdout", subprocess.PIPE), stderr=subprocess.PIPE,
            preexec_fn=options.get("preexec_fn"),
        )  # fmt: skip
        deadline = time.monotonic() + 20
        while not is_recorded(daemon, "novel"):
            assert time.monotonic() < deadline and self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.02)

    def end(self, number: int | None = None):
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return subprocess.CompletedProcess([], self.process.returncode, (out or b"").decode(), err.decode())


@pytest.fixture
def recorded(daemon, novel, tmp_path):
    """A file of 60 queries, 40 by a share of rows and 20 by error."""
    path = tmp_path / "queries"
    recorder = Recorder(daemon, "novel", str(path), "--requests", "60", "--json")
    novel(40, budget=0.05)
    novel(30, error_target=0.1)
    result = json.loads(good(recorder.end()))
    assert result | {"bytes": 0, "duration_ns": 0, "answers": 0} == {
        "name": "novel", "file": str(path), "records": 60, "bytes": 0, "answers": 0, "lost": 0, "too_long": 0, "duration_ns": 0,
        "ended": "stopped",
    }  # fmt: skip
    assert 60 <= result["answers"] <= 70
    assert result["bytes"] == path.stat().st_size
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return path


def replay(daemon, *arguments) -> dict:
    return json.loads(good(daemon.ctl("trace", "replay", "--json", *map(str, arguments))))


def test_the_same_again(daemon, recorded):
    """Same rows, same random numbers: the same rows are read, and with --exact dense is exact."""
    result = replay(daemon, recorded, "--exact", "--config", "recorded", "--config", "dense", "--config", "signature,budget=0.3")
    assert (result["context"], result["queries"], result["empty"], result["beyond"]) == ("novel", 60, 0, 0)
    was = result["recorded"]
    same, dense, more = result["replayed"]
    assert same["rows_read"] == was["rows_read"] and same["asked"] == was["asked"] == 60
    assert dense["rows_read"] == 60 * 2 * TOKENS and dense["share_of_rows"] == 1
    assert dense["error"]["max"] == 0
    assert 0 < more["error"]["mean"] < same["error"]["mean"]
    assert all(e["mean"] < e["rms"] <= e["max"] for e in (more["error"], same["error"]))
    assert more["share_of_rows"] > 0.25
    for each in same, dense, more:
        assert 0 < each["service_ns"]["p50"] <= each["service_ns"]["p99"] <= each["service_ns"]["max"]
        assert each["round_trip_ns"]["p50"] > 0
    assert "error" not in replay(daemon, recorded)["replayed"][0]


def test_the_table(daemon, recorded):
    lines = good(daemon.ctl("trace", "replay", str(recorded), "-n", "10", "--proposal", "uniform", "--budget", "0.5", "--exact")).splitlines()
    assert lines[0].startswith("novel: 10 queries of 'novel', recorded ")
    assert lines[2].split()[0] == "CONFIGURATION" and lines[2].endswith("WORST")
    assert lines[3].startswith("when it was recorded ") and lines[4].startswith("uniform,budget=0.5 ")
    assert " 50 % " in lines[4] or " 49" in lines[4] or " 50." in lines[4]
    assert lines[-3].startswith("Times are inside the daemon") and "root mean square" in lines[-2]


def test_at_a_pace(daemon, novel, tmp_path):
    path = tmp_path / "queries"
    recorder = Recorder(daemon, "novel", str(path), "-n", "5")
    for _ in range(5):
        novel(1, budget=0.05)
        time.sleep(0.1)
    good(recorder.end())
    begun = time.monotonic()
    assert replay(daemon, path, "--speed", "1")["replayed"][0]["late"] <= 5
    assert time.monotonic() - begun >= 0.35
    begun = time.monotonic()
    replay(daemon, path, "--speed", "100")
    assert time.monotonic() - begun < 0.35 * 10  # not at the recorded pace twice over, however loaded


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ended_by_a_signal(daemon, novel, tmp_path, number):
    path = tmp_path / "queries"
    recorder = Recorder(daemon, "novel", str(path))
    assert "recorded      what is asked of it is being recorded" in good(daemon.ctl("show", "novel"))
    refused(daemon.ctl("trace", "record", "novel", str(tmp_path / "other")), FAILED, "its queries are being recorded already")
    assert not (tmp_path / "other").exists()
    novel(7, budget=0.05)
    result = recorder.end(number)
    assert result.returncode == OK and result.stderr == ""
    assert result.stdout.startswith("novel: recorded 7 queries in ")
    assert replay(daemon, path)["queries"] == 7
    assert not is_recorded(daemon, "novel")


def test_killed_leaves_what_is_whole(daemon, novel, tmp_path):
    path = tmp_path / "queries"
    recorder = Recorder(daemon, "novel", str(path))
    novel(20, budget=0.05)
    deadline = time.monotonic() + 20
    while (not path.exists() or path.stat().st_size < 20 * 1280 + 448) and time.monotonic() < deadline:
        time.sleep(0.05)
    recorder.end(signal.SIGKILL)
    result = daemon.ctl("trace", "replay", "--json", str(path))
    assert result.returncode == OK
    assert result.stderr == f"magicpigctl trace: {path} was cut short; what is there is replayed\n"
    assert json.loads(result.stdout)["queries"] == 20
    deadline = time.monotonic() + 20
    while is_recorded(daemon, "novel"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_through_a_pipe(daemon, novel, tmp_path):
    path = tmp_path / "queries"
    with path.open("wb") as out:
        recorder = Recorder(daemon, "novel", "-", "-n", "3", stdout=out)
        novel(3, budget=0.05)
        result = recorder.end()
    assert result.returncode == OK and result.stderr.startswith("novel: recorded 3 queries")
    assert replay(daemon, path)["queries"] == 3


def test_replayed_from_a_pipe(daemon, recorded, tmp_path):
    """It is read once for each pass, which a pipe cannot be."""
    want = replay(daemon, recorded, "--exact")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["cat", str(recorded)], stdout=subprocess.PIPE) as cat:
        piped = json.loads(good(daemon.ctl("trace", "replay", "--json", "-", "--exact", stdin=cat.stdout)))
    with recorded.open("rb") as file:
        redirected = json.loads(good(daemon.ctl("trace", "replay", "--json", "-", "--exact", stdin=file)))
    with subprocess.Popen(["sh", "-c", 'cat "$0" > "$1"', str(recorded), str(fifo)]):
        named = replay(daemon, fifo, "--exact")
    for result in piped, redirected, named:
        assert result["queries"] == 60
        assert result["recorded"] == want["recorded"]
        assert result["replayed"][0]["rows_read"] == want["replayed"][0]["rows_read"]
        assert result["replayed"][0]["error"] == want["replayed"][0]["error"]
    cut = subprocess.run(
        ["sh", "-c", 'head -c 2000 "$0" | "$1" --socket "$2" trace replay -', str(recorded), MAGICPIGCTL, str(daemon.socket)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert cut.stderr == "magicpigctl trace: standard input was cut short; what is there is replayed\n"
    assert cut.stdout.startswith("novel: 1 query of 'novel'")


def test_a_stuck_daemon_does_not_hold_it(daemon, recorded):
    """The first signal asks, the second ends."""
    daemon.freeze()
    try:
        process = subprocess.Popen(
            [MAGICPIGCTL, "--socket", str(daemon.socket), "trace", "replay", str(recorded)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        for _ in range(2):
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (-signal.SIGINT, "", "")
    finally:
        daemon.thaw()


def test_what_a_ring_has_no_room_for(daemon, novel, tmp_path):
    path = tmp_path / "queries"
    recorder = Recorder(daemon, "novel", str(path), "--ring", "1", "--json")
    recorder.process.send_signal(signal.SIGSTOP)
    novel(1500, budget=0.01)  # 1.25 KiB each
    recorder.process.send_signal(signal.SIGCONT)
    result = json.loads(recorder.end(signal.SIGTERM).stdout)
    assert result["answers"] == 1500 and result["lost"] > 300 and result["records"] == 1500 - result["lost"]
    assert replay(daemon, path)["queries"] == result["records"]


def test_when_the_context_is_dropped(daemon, novel, client, tmp_path):
    import magicpig

    context = client.create("brief", magicpig.Spec([magicpig.Layer(query_heads=1, kv_heads=1, d_k=64)], fingerprint=b"x"))
    context.close()
    process = subprocess.Popen(
        [MAGICPIGCTL, "--socket", str(daemon.socket), "trace", "record", "brief", str(tmp_path / "queries")],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / "queries").exists():  # it knows the context by then
        assert process.poll() is None
        time.sleep(0.02)
    client.drop("brief")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (OK, "")
    assert out.startswith("brief: recorded 0 queries in ") and out.endswith(": the context is no longer in memory\n")


def test_a_full_disk_takes_nothing_away(daemon, novel, tmp_path):
    """What was recorded before is there, and a file that holds nothing is not."""

    def small_files(most: int):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    path = tmp_path / "queries"
    recorder = Recorder(daemon, "novel", str(path), preexec_fn=lambda: small_files(20000))
    novel(40, budget=0.05)
    result = recorder.end()
    assert (result.returncode, result.stdout) == (FAILED, "")
    assert result.stderr == f"magicpigctl trace: '{path}': File too large; the queries that were written before are kept\n"
    result = daemon.ctl("trace", "replay", "--json", str(path))
    assert result.stderr == f"magicpigctl trace: {path} was cut short; what is there is replayed\n"
    assert json.loads(result.stdout)["queries"] == (20000 - 448) // 1280
    path.unlink()
    result = daemon.ctl("trace", "record", "novel", str(path), preexec_fn=lambda: small_files(100))
    refused(result, FAILED, f"magicpigctl trace: '{path}': File too large\n")
    assert not path.exists()
    with open("/dev/full", "w") as full:  # one failure, one line
        command = [MAGICPIGCTL, "--socket", str(daemon.socket), "trace", "record", "novel", "-"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (FAILED, "magicpigctl trace: '-': No space left on device\n")


def test_a_connection_that_is_ended(daemon, novel, tmp_path):
    path = tmp_path / "queries"
    recorder = Recorder(daemon, "novel", str(path), "--json")
    novel(3, budget=0.05)
    (connection,) = [c["id"] for c in json.loads(good(daemon.ctl("clients", "--json"))) if c["pid"] == recorder.process.pid]
    good(daemon.ctl("kill-client", str(connection)))
    result = json.loads(good(recorder.end()))
    assert (result["records"], result["ended"]) == (3, "closed")
    assert replay(daemon, path)["queries"] == 3


def test_files_that_are_not_good(daemon, recorded, tmp_path):
    bad = tmp_path / "bad"
    refused(daemon.ctl("trace", "record", "novel", str(recorded)), FAILED, "is there already; give another name, or remove it")
    refused(daemon.ctl("trace", "replay", str(bad)), FAILED, "No such file")
    bad.write_bytes(b"hello")
    refused(daemon.ctl("trace", "replay", str(bad)), FAILED, "this is no file of recorded queries")
    whole = bytearray(recorded.read_bytes())
    whole[len(whole) // 2] ^= 1
    bad.write_bytes(whole)
    refused(daemon.ctl("trace", "replay", str(bad)), FAILED, "does not have its checksum: the file is damaged")


def test_another_context(daemon, recorded, client):
    import magicpig

    layer = magicpig.Layer(query_heads=4, kv_heads=2, d_k=64, signature_bits=2)
    client.create("short", magicpig.Spec([layer, layer], fingerprint=b"model", seed=7)).close()
    client.create("alien", magicpig.Spec([layer, layer], fingerprint=b"other", seed=7)).close()
    client.create("wide", magicpig.Spec([layer], fingerprint=b"model", seed=7)).close()
    try:
        refused(daemon.ctl("trace", "replay", str(recorded), "short"), FAILED, "holds no query that 'short' has the rows for")
        for name in "alien", "wide":
            refused(daemon.ctl("trace", "replay", str(recorded), name), FAILED, f"'{name}' is of another model than the queries")
        refused(daemon.ctl("trace", "replay", str(recorded), "nobody"), NOT_FOUND, "nobody")
        assert daemon.ctl("fork", "novel", "branch").returncode == OK
        assert replay(daemon, recorded, "branch")["replayed"][0]["asked"] == 60
        client.drop("branch")
        assert daemon.ctl("fork", "--tokens", "8000", "novel", "branch").returncode == OK
        refused(daemon.ctl("trace", "replay", str(recorded), "branch"), FAILED, "holds no query")
        client.drop("branch")
    finally:
        for name in "short", "alien", "wide":
            client.drop(name)


def test_a_configuration_the_context_has_no_index_for(daemon, recorded):
    result = daemon.ctl("trace", "replay", str(recorded), "--proposal", "paper")
    refused(result, FAILED, "magicpigctl trace: paper: ")
    assert "not supported" in result.stderr


@pytest.mark.parametrize(
    "arguments, text",
    [
        ([], "give record or replay"),
        (["rewind"], "'rewind' is not record or replay"),
        (["record", "novel"], "record: give a context, and a file"),
        (["record", "novel", "x", "--exact"], "belong to replay"),
        (["replay"], "replay: give a file"),
        (["replay", "x", "--ring", "3"], "belong to record"),
        (["replay", "x", "--speed", "0"], "--speed: '0' is not a number above 0"),
        (["replay", "x", "--config", "magic"], "--config: 'magic' is no proposal"),
        (["replay", "x", "--config", "budget=2"], "--config: budget: '2' is not a number above 0 and up to 1"),
        (["replay", "x", "--config", "size=2"], "--config: 'size' is not budget, error, floor, cap or delta"),
        (["replay", "x", "--config", "budget=.1,delta=.1"], "delta verifies an error, not a budget"),
        (["replay", "x", "--budget", "no"], "budget: 'no' is not a number"),
        (["replay", "x", *["--config", "dense"] * 9], "at most 8 configurations"),
        (["record", "novel", "x", "-n", "0"], "--requests: '0' is not a number from 1"),
    ],
)
def test_wrong_usage(daemon, arguments, text):
    refused(daemon.ctl("trace", *arguments), USAGE, text)


def test_nobody_to_record(daemon, tmp_path):
    refused(daemon.ctl("trace", "record", "nobody", str(tmp_path / "x")), NOT_FOUND, "'nobody'")
    assert not (tmp_path / "x").exists()
    assert os.listdir(tmp_path) == []
