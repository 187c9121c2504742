"""magicpigctl against a private daemon: every command, its JSON, its exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time

import pytest
from cli_daemon import MAGICPIGCTL, MAGICPIGD, ctl, good, open_terminal

OK, FAILED, USAGE, NO_DAEMON, NOT_FOUND, PERMISSION = range(6)
COMMANDS = """status ls show drop fork verify save load saved fsck gc erase export import evict pin unpin persist ttl clients kill-client quota drain ping
    config reload top health metrics version analyze bench plan""".split()


# ---- without a daemon ---------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_exit_code():
    text = good(ctl("--help"))
    for command in COMMANDS:
        assert re.search(rf"^  {command}\b", text, re.M)
    assert "Exit status: 0 success" in text and "5 permission denied" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    text = good(ctl(command, "--help"))
    assert text.startswith(f"Usage: magicpigctl {command} [OPTIONS]")
    assert "--json" in text and "--socket" in text
    assert good(ctl(command, "-h")) == text


def test_version():
    assert re.fullmatch(r"magicpigctl \d+\.\d+\.\d+\n", good(ctl("--version")))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["--fly"],
        ["status", "--fly"],
        ["status", "extra"],
        ["status", "--interval", "-1"],
        ["ping", "-c", "0"],
        ["ping", "-c", "4x"],
        ["ping", "-c"],
        ["ping", "extra"],
        ["show"],
        ["drop"],
        ["config", "set"],
        ["config", "list", "extra"],
        ["config", "get", "daemon.socket", "extra"],
        ["config", "fly"],
        ["config", "set", "words"],
        ["config", "set", "a.b", "c", "d"],
        ["config", "test", "a", "b"],
        ["reload", "extra"],
        ["--socket"],
        ["clients", "extra"],
        ["kill-client"],
        ["kill-client", "x"],
        ["kill-client", "0"],
        ["kill-client", "--pid", "0"],
        ["kill-client", "--pid", "1", "2"],
        ["quota", "no-such-user"],
        ["quota", "-1x"],
        ["quota", "--all", "root"],
        ["drain", "extra"],
        ["drain", "--wait", "0"],
        ["drain", "--undo", "--wait", "1"],
        ["fork", "a"],
        ["fork", "a", "b", "c"],
        ["fork", "a", "b", "-t", "many"],
        ["version", "extra"],
        ["health", "extra"],
        ["metrics", "extra"],
        ["metrics", "--json"],
        ["metrics"] + ["--listen", "unix:/x"] * 9,
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments, tmp_path):
    result = ctl(*arguments, env={"MAGICPIG_SOCKET": str(tmp_path / "none")})
    assert result.returncode == USAGE
    assert result.stdout == ""
    assert result.stderr.startswith("magicpigctl") and "--help'" in result.stderr


@pytest.mark.parametrize("arguments", [["status"], ["ls"], ["show", "x"], ["drop", "x"], ["ping"], ["config"], ["config", "set", "a.b=c"], ["config", "diff"], ["reload"]], ids=" ".join)
def test_no_daemon(arguments, tmp_path):
    path = str(tmp_path / "magicpigd.sock")
    result = ctl("--socket", path, *arguments)
    assert result.returncode == NO_DAEMON
    assert result.stdout == ""
    assert path in result.stderr and result.stderr.startswith(f"magicpigctl {arguments[0]}: ")


def test_socket_file_nobody_listens_on(tmp_path):
    path = str(tmp_path / "magicpigd.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(path)
    assert ctl("--socket", path, "ping").returncode == NO_DAEMON


def test_output_that_cannot_be_written(daemon):
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [MAGICPIGCTL, "--socket", str(daemon.socket), "config"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert result.returncode == FAILED
    assert "standard output" in result.stderr


# ---- with one -----------------------------------------------------------------------------------------------------------


def test_options_before_and_after_the_command(daemon):
    path = str(daemon.socket)
    for arguments in (["--json", "--socket", path, "ls"], ["ls", "--json", "--socket", path]):
        assert json.loads(good(ctl(*arguments))) == []
    assert good(ctl("ls", env={"MAGICPIG_SOCKET": path})) == "no contexts\n"


def test_status(daemon):
    text = good(daemon.ctl("status", "-i", "20"))
    assert text.startswith("magicpigd ")
    assert f"pid {daemon.process.pid}" in text
    assert str(daemon.pool) in text
    assert "of 64.0 MiB" in text
    assert "\x1b" not in text
    rows = re.findall(r"^ +(\d+) +\S+ +(spin|busy|parked)\b", text, re.M)
    assert [number for number, _ in rows] == ["0", "1"]


def test_status_json(daemon, book):
    seen = json.loads(good(daemon.ctl("status", "--json", "--interval", "0")))
    assert seen["answered"] is True
    assert seen["pid"] == daemon.process.pid
    assert seen["instance"] == daemon.instance
    assert seen["pool_bytes"] == 64 << 20
    assert 0 < seen["pool_used"] <= seen["pool_bytes"]
    assert seen["contexts"] == 1
    assert seen["commits"] >= 1 and seen["appended_rows"] >= 900
    assert len(seen["statistics"]["workers"]) == seen["workers"] == 2
    assert seen["statistics"]["append_p50_us"] > 0


def test_status_from_the_file_alone(daemon):
    path = json.loads(good(daemon.ctl("status", "--json")))["stats_file"]
    elsewhere = ["--socket", "/nonexistent/magicpigd.sock", "status", "--stats", path, "-i", "1"]
    seen = json.loads(good(ctl("--json", *elsewhere)))
    assert seen["answered"] is False
    assert seen["pid"] == daemon.process.pid
    assert seen["pool_bytes"] == 64 << 20
    assert f"pid {daemon.process.pid}" in good(ctl(*elsewhere))


def test_status_of_a_file_that_is_no_statistics_file(daemon):
    result = ctl("status", "--stats", str(daemon.config))
    assert result.returncode == FAILED
    assert "not a statistics file" in result.stderr


def test_ls(daemon, book):
    lines = good(daemon.ctl("ls")).splitlines()
    assert lines[0].split()[:4] == ["NAME", "OWNER", "MODE", "TOKENS"]
    assert len(lines) == 2
    assert lines[1].split()[0] == "book" and lines[1].split()[2:4] == ["0600", "300"]
    assert good(daemon.ctl("ls", "-1")) == "book\n"


def test_ls_patterns_and_order(daemon, client, book):
    import magicpig

    others = ["another", "book two"]
    for name in others:
        client.create(name, magicpig.Spec([magicpig.Layer(query_heads=1, kv_heads=1, d_k=64)])).close()
    try:
        assert good(daemon.ctl("ls", "-1")) == "another\nbook\nbook two\n"
        assert good(daemon.ctl("ls", "-1", "book*")) == "book\nbook two\n"
        assert good(daemon.ctl("ls", "-1", "[x-z]*", "another")) == "another\n"
        assert good(daemon.ctl("ls", "none")) == "no contexts\n"
        assert [c["name"] for c in json.loads(good(daemon.ctl("ls", "--json", "a*")))] == ["another"]
    finally:
        for name in others:
            client.drop(name)


def test_ls_json(daemon, book):
    (context,) = json.loads(good(daemon.ctl("ls", "--json")))
    assert context["name"] == "book"
    assert context["committed"] == context["indexed"] == 300
    assert context["mode"] == "0600"
    assert context["uid"] == os.getuid()
    assert context["layer_count"] == 4 and context["global_layers"] == 3
    assert context["rows_bytes"] >= 300 * 3 * 2 * 2 * 64 * 2
    assert context["index_bytes"] > 0
    assert context["writer_pid"] == os.getpid()
    assert re.fullmatch(r"[0-9a-f]{128}", context["fingerprint"])


def test_show(daemon, book):
    text = good(daemon.ctl("show", "book"))
    assert text.startswith("book\n")
    assert "300 committed, 300 indexed, in 1 segment\n" in text
    assert f"writer lease held by pid {os.getpid()}" in text
    assert re.search(r"^    0, 2-3: global, 6/2 heads, d 64, bf16, signature b=2, paper \(8,75\)", text, re.M)
    assert re.search(r"^    1: sliding, 6/2 heads, d 64, window 128, no rows here$", text, re.M)


def test_show_json(daemon, book):
    (context,) = json.loads(good(daemon.ctl("show", "--json", "book")))
    assert context["committed"] == 300 and context["seed"] == 7
    assert [(group["numbers"], group["kind"]) for group in context["layers"]] == [([0, 2, 3], "global"), ([1], "sliding")]
    assert context["layers"][0]["scale"] == pytest.approx(0.125)
    assert (context["layers"][0]["paper_k"], context["layers"][0]["paper_l"]) == (8, 75)


def test_show_automatic_widths(daemon, client):
    """Two KV heads, one without noise to speak of, and what the layer asked for beside what was chosen."""
    import magicpig
    import numpy

    tokens, random = 4500, numpy.random.default_rng(5)
    layer = magicpig.Layer(query_heads=4, kv_heads=2, d_k=64, signature_bits="auto", signature_bytes=30)
    with client.create("widths", magicpig.Spec([layer], seed=7)) as context, client.queue() as queue:
        assert [h.signature_bits for h in client.heads("widths")] == ["auto", "auto"]
        k, v = (random.standard_normal((tokens, 2, 64), dtype=numpy.float32) for _ in range(2))
        k *= numpy.array([0.02, 3], numpy.float32)[:, None]
        queue.append(context, 0, 0, k, v, random.standard_normal((16, 4, 64), dtype=numpy.float32))
        queue.commit(context, 0, numpy.arange(tokens, dtype=numpy.uint32), seal=True)
        assert context.layers[0].signature_bits == "auto" and context.layers[0].signature_bytes == 30
    quiet, noisy = (h.signature_bits for h in client.heads("widths"))
    assert quiet == 1 and noisy in (2, 4)
    shown = good(daemon.ctl("show", "--heads", "widths"))
    assert "signature b=auto (at most 30 bytes a row)" in shown
    (context,) = json.loads(good(daemon.ctl("show", "--heads", "--json", "widths")))
    assert context["layers"][0]["signature_bits"] == "auto" and context["layers"][0]["signature_bytes"] == 30
    assert [h["signature_bits"] for h in context["heads"]] == [quiet, noisy]
    for wrong in (dict(signature_bits="auto", signature_bytes=9), dict(signature_bits=2, signature_bytes=30)):
        with pytest.raises(magicpig.InvalidArgument, match="signature_bytes"):
            client.create("wrong", magicpig.Spec([magicpig.Layer(query_heads=4, kv_heads=2, d_k=64, **wrong)]))
    client.drop("widths")


def test_reindex(daemon, client):
    """While the context is served: the same rows, a new version, still near to exact attention; what has no index says so."""
    import magicpig
    import numpy

    tokens, random = 6000, numpy.random.default_rng(5)
    layer = magicpig.Layer(query_heads=4, kv_heads=2, d_k=64, signature_bits="auto")
    q = random.standard_normal((4, 64), dtype=numpy.float32)
    with client.create("again", magicpig.Spec([layer], seed=7)) as context, client.queue() as queue:
        k, v = (random.standard_normal((tokens, 2, 64), dtype=numpy.float32) for _ in range(2))
        queue.append(context, 0, 0, k, v, q[None])
        early = daemon.ctl("reindex", "again")
        assert early.returncode == 1 and "has no index yet" in early.stderr
        queue.commit(context, 0, numpy.arange(tokens, dtype=numpy.uint32), seal=True)
        exact = queue.attend(context, 0, q, proposal="dense")
        assert good(daemon.ctl("reindex", "again")) == "again: indexed again, 6,000 tokens, version 2\n"
        assert client.reindex("again") == 3
        sampled = queue.attend(context, 0, q, budget=0.05)
        assert client.info("again").signature_version == 3 and (sampled.rows < tokens / 10).all()
        assert numpy.abs(sampled.lse - exact.lse).max() < 0.5
        assert client.info("again").indexed == tokens
        assert client.verify("again").checked > 0
    (said,) = json.loads(good(daemon.ctl("--json", "reindex", "again")))
    assert said == {"name": "again", "tokens": tokens, "signature_version": 4}
    client.drop("again")
    assert daemon.ctl("reindex").returncode == 2 and daemon.ctl("reindex", "missing").returncode == 4


def test_show_heads(daemon, client):
    import magicpig
    import numpy

    tokens, random = 6000, numpy.random.default_rng(3)
    layer = magicpig.Layer(query_heads=4, kv_heads=2, d_k=64, signature_bits=2)
    sliding = magicpig.Layer(kind="sliding", query_heads=4, kv_heads=2, d_k=64, window=128)
    plain = magicpig.Layer(query_heads=4, kv_heads=2, d_k=64)
    with client.create("heads", magicpig.Spec([layer, sliding, plain], seed=7)) as context, client.queue() as queue:
        for number in (0, 2):
            k, v = (random.standard_normal((tokens, 2, 64), dtype=numpy.float32) for _ in range(2))
            queue.append(context, number, 0, k, v)
        queue.commit(context, 0, numpy.arange(tokens, dtype=numpy.uint32), seal=True)
        before = client.heads("heads")
        queue.attend(context, 0, random.standard_normal((4, 64), dtype=numpy.float32), budget=0.02)
    heads = client.heads("heads")
    assert [(h.layer, h.kv_head, h.signature_bits) for h in heads] == [(0, 0, 2), (0, 1, 2), (2, 0, 0), (2, 1, 0)]
    assert [h.signature_version for h in heads] == [1, 1, 0, 0]
    assert all(h.samples == 0 and h.noise == 0 and h.n_eff == 0 and h.drawn == 0 and h.best_bits == 0 for h in before + heads[2:])
    for head in heads[:2]:
        assert head.samples == 1 and head.rows == tokens
        assert 0 < head.drawn <= 0.02 * tokens * 1.01 and head.best_bits in (1, 2, 4)  # the budget's rows, less the certain
        assert 0 < head.noise < 2 and 1 <= head.n_eff <= tokens and 0.01 < head.mass_1 < head.mass_5 < 1

    (context,) = json.loads(good(daemon.ctl("show", "--heads", "--json", "heads")))
    assert [(h["layer"], h["kv_head"], h["samples"]) for h in context["heads"]] == [(0, 0, 1), (0, 1, 1), (2, 0, 0), (2, 1, 0)]
    assert context["heads"][1]["n_eff"] == pytest.approx(heads[1].n_eff)
    text = good(daemon.ctl("show", "--heads", "heads"))
    title, *lines = text.splitlines()[-5:]
    assert title.split()[:4] == ["layer", "KV", "head", "bits"]
    assert [line.split()[:5] for line in lines] == [list("00211"), list("01211"), list("20000"), list("21000")]
    assert lines[3].split()[5:] == ["-"] * 7
    assert "heads" not in json.loads(good(daemon.ctl("show", "--json", "heads")))[0]
    assert daemon.ctl("show", "--heads", "missing").returncode == NOT_FOUND
    with pytest.raises(magicpig.NotFound):
        client.heads("missing")
    client.drop("heads")


def test_several_names_of_which_one_is_missing(daemon, book):
    result = daemon.ctl("show", "--json", "missing", "book")
    assert result.returncode == NOT_FOUND
    assert "'missing'" in result.stderr
    assert [context["name"] for context in json.loads(result.stdout)] == ["book"]


def test_show_of_nothing(daemon):
    result = daemon.ctl("show", "missing")
    assert result.returncode == NOT_FOUND
    assert result.stdout == "" and "'missing'" in result.stderr


def test_a_name_with_an_escape_sequence_is_not_sent_to_the_terminal(daemon):
    result = daemon.ctl("show", "\x1b[31mred")
    assert result.returncode != OK
    assert "\x1b" not in result.stderr


def test_drop(daemon, client, book):
    book.close()
    result = daemon.ctl("drop", "missing", "book")
    assert result.returncode == NOT_FOUND
    assert result.stdout == "book: dropped\n"
    assert good(daemon.ctl("ls", "-1")) == ""


def test_drop_json(daemon, book):
    book.close()
    assert json.loads(good(daemon.ctl("--json", "drop", "--yes", "book"))) == [{"name": "book", "result": "dropped"}]


@pytest.mark.parametrize("answer, gone", [("n\n", False), ("\n", False), ("y\n", True)], ids=["no", "nothing", "yes"])
def test_drop_asks_on_a_terminal(daemon, book, answer, gone):
    book.close()
    ours, theirs = open_terminal()
    try:
        os.write(ours, answer.encode())
        result = daemon.ctl("drop", "book", stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert result.returncode == OK
    assert "Drop context 'book' (300 tokens, " in result.stderr
    assert result.stdout == ("book: dropped\n" if gone else "book: kept\n")
    assert good(daemon.ctl("ls", "-1")) == ("" if gone else "book\n")


def damage_token_ids(daemon) -> None:
    """Changes one of the book's token ids where the daemon keeps them."""
    with open(daemon.pool / "node0.pool", "r+b") as pool:
        ids = b"".join(number.to_bytes(4, "little") for number in range(200))
        at = pool.read().find(ids)
        assert at > 0
        pool.seek(at + len(ids) - 4)
        pool.write(b"\xff")


def test_verify(daemon, book):
    assert re.fullmatch(r"book: good, .* read, \d+ parts checked\n", good(daemon.ctl("verify")))
    seen = json.loads(good(daemon.ctl("--json", "verify", "book")))
    assert len(seen) == 1 and seen[0]["good"] and seen[0]["damaged"] == seen[0]["unchecked"] == 0
    assert seen[0]["checked"] >= 4 and seen[0]["bytes"] > 300 * 3 * 2 * 2 * 64 * 2
    assert daemon.ctl("verify", "missing").returncode == NOT_FOUND


def test_verify_finds_damage(daemon, book):
    damage_token_ids(daemon)
    for arguments in (["book"], []):
        result = daemon.ctl("verify", *arguments)
        assert result.returncode == FAILED
        assert re.fullmatch(r"book: DAMAGED, .* checked, 1 damaged\n", result.stdout)
        assert "differ from their checksums" in result.stderr
    assert "does not have its checksum" in daemon.log_text()
    seen = json.loads(daemon.ctl("--json", "verify").stdout)
    assert [(context["name"], context["good"], context["damaged"]) for context in seen] == [("book", False, 1)]


def test_rows_that_are_not_sealed_have_no_checksum(daemon, client):
    import magicpig
    import numpy

    rows = numpy.ones((5, 1, 64), dtype=numpy.float32)
    layer = magicpig.Layer(query_heads=1, kv_heads=1, d_k=64)
    with client.create("open", magicpig.Spec([layer], fingerprint=b"model")) as context, client.queue() as queue:
        queue.append(context, 0, 0, rows, rows)
        queue.commit(context, 0, numpy.arange(5, dtype=numpy.uint32))
        assert good(daemon.ctl("verify", "open")) == "open: good, 0 B read, 0 parts checked, 1 without a checksum\n"
    client.drop("open")


def test_save_and_load(daemon, client, book):
    assert good(daemon.ctl("saved")) == "nothing is saved\n"
    assert re.fullmatch(r"book: saved, 300 tokens, .*, .* written\n", good(daemon.ctl("save", "book")))
    seen = json.loads(good(daemon.ctl("--json", "save", "--all")))
    assert [(x["name"], x["segments"], x["shared"], x["moved"]) for x in seen] == [("book", 1, 1, 0)]
    assert re.search(r"^book +300 .*UTC", good(daemon.ctl("saved")), re.M)
    (saved,) = json.loads(good(daemon.ctl("saved", "--json")))
    assert saved["name"] == "book" and saved["committed"] == 300 and saved["bytes"] == seen[0]["bytes"]
    assert re.fullmatch(r"book: good, 300 tokens, .*, .* read\n", good(daemon.ctl("fsck")))
    assert daemon.ctl("load", "book").returncode == FAILED  # it is in memory
    book.close()
    good(daemon.ctl("drop", "--yes", "book"))
    assert daemon.ctl("save", "book").returncode == NOT_FOUND
    assert good(daemon.ctl("load", "--all")).startswith("book: loaded, 300 tokens, ")
    assert re.fullmatch(r"book: good, .* checked\n", good(daemon.ctl("verify")))
    assert [info.name for info in client.saved()] == ["book"]
    calls = []
    assert client.save("book", progress=lambda done, total: calls.append((done, total))).shared == 1
    assert calls and calls[-1][0] == calls[-1][1]
    assert good(daemon.ctl("erase", "--yes", "book")) == "book: erased\n"
    assert good(daemon.ctl("saved")) == "nothing is saved\n"
    assert daemon.ctl("erase", "--yes", "book").returncode == NOT_FOUND
    assert not list((daemon.directory / "disk" / "segments").iterdir())


def test_export_and_import(daemon, client, book, tmp_path):
    file = tmp_path / "book.mpig"
    assert re.fullmatch(r"book: exported, 300 tokens, .*\n", good(daemon.ctl("export", "book", str(file))))
    assert file.stat().st_mode & 0o777 == 0o600 and [path.name for path in tmp_path.iterdir()] == ["book.mpig"]
    assert daemon.ctl("import", str(file)).returncode == FAILED  # there is one of that name
    assert re.fullmatch(r"copy: imported, 300 tokens, .*\n", good(daemon.ctl("import", str(file), "copy")))
    seen = json.loads(good(daemon.ctl("--json", "import", str(file), "third")))
    assert seen == {"name": "third", "tokens": 300, "bytes": file.stat().st_size, "segments": 1}
    piped = subprocess.run([MAGICPIGCTL, "--socket", str(daemon.socket), "export", "book", "-"], capture_output=True, timeout=60)
    assert piped.returncode == OK and len(piped.stdout) == file.stat().st_size and b"book: exported" in piped.stderr
    back = [MAGICPIGCTL, "--socket", str(daemon.socket), "import", "-", "fourth"]
    assert subprocess.run(back, input=piped.stdout, capture_output=True, timeout=60).returncode == OK
    client.drop("third"), client.drop("fourth")
    assert client.export("copy", tmp_path / "again").tokens == 300
    result = client.import_file(tmp_path / "again", "fifth")
    assert result.name == "fifth" and client.info("fifth").seed == client.info("book").seed
    client.drop("fifth")
    client.save("copy")
    client.drop("copy")
    good(daemon.ctl("export", "copy", str(file)))  # loads it
    assert client.info("copy").committed == 300
    client.drop("copy")
    client.erase_saved("copy")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    result = daemon.ctl("import", str(file), "bad")
    assert result.returncode == FAILED and re.search(r"chunk \d+, before byte \d+: it does not have its checksum", result.stderr)
    assert daemon.ctl("export", "nothing", str(tmp_path / "none")).returncode == NOT_FOUND
    assert not (tmp_path / "none").exists()
    assert daemon.ctl("import", str(tmp_path / "none")).returncode == FAILED
    assert daemon.ctl("export", "book").returncode == daemon.ctl("import").returncode == USAGE


def test_evict(daemon, client, book):
    assert daemon.ctl("evict", "book").returncode == FAILED  # it is not on disk
    assert good(daemon.ctl("evict", "--dry-run")) == ""
    good(daemon.ctl("save", "book"))
    assert daemon.ctl("evict", "book").returncode == FAILED  # it is open
    book.close()
    assert re.fullmatch(r"book: would leave memory, .*\n", good(daemon.ctl("evict", "--dry-run")))
    good(daemon.ctl("pin", "book"))
    assert good(daemon.ctl("evict", "--dry-run")) == good(daemon.ctl("evict", "--all")) == ""
    assert "pinned" in daemon.ctl("evict", "book").stderr
    good(daemon.ctl("unpin", "book"))
    assert re.fullmatch(r"book: left memory, .*\n", good(daemon.ctl("evict", "--all")))
    assert good(daemon.ctl("ls")) == "no contexts\n"
    client.open("book").close()
    assert client.info("book").committed == 300
    client.pin("book")
    client.pin("book", False)
    client.evict("book")
    assert [info.name for info in client.contexts()] == []
    client.erase_saved("book")
    assert daemon.ctl("pin", "book").returncode == NOT_FOUND


def test_how_long_it_is_kept(daemon, client, book):
    assert good(daemon.ctl("pin", "book")) == "book: pinned\n"
    assert re.fullmatch(r"book: pinned for (2 h|1 h 59 min)[^,]*\n", good(daemon.ctl("pin", "book", "--ttl", "2h")))
    assert good(daemon.ctl("unpin", "book")) == "book: -\n"
    assert good(daemon.ctl("persist", "book", "idle", "5min")) == "book: idle 5 min\n"
    assert good(daemon.ctl("persist", "book", "none")) == "book: not saved\n"
    assert re.fullmatch(r"book: not saved, ttl 7 d[^,]*, then erased\n", good(daemon.ctl("ttl", "book", "7d", "--erase")))
    assert good(daemon.ctl("persist", "book", "default")).startswith("book: ttl 7 d")
    (seen,) = json.loads(good(daemon.ctl("--json", "persist", "book", "commit")))
    wanted = {"persist": "commit", "idle_s": 0, "ttl_s": 7 * 86400, "ttl_erase": True, "pinned_until_ns": 0}
    assert seen == {"name": "book", **wanted}
    (listed,) = [c for c in json.loads(good(daemon.ctl("ls", "--json"))) if c["name"] == "book"]
    assert {key: listed[key] for key in wanted} == wanted
    assert re.search(r"^NAME .* KEPT$", good(daemon.ctl("ls")), re.M) and "commit, ttl 7 d" in good(daemon.ctl("ls"))
    assert re.search(r"^  kept +commit, ttl 7 d", good(daemon.ctl("show", "book")), re.M)
    good(daemon.ctl("save", "book"))
    (saved,) = json.loads(good(daemon.ctl("saved", "--json")))
    assert {key: saved[key] for key in wanted} == wanted
    assert "commit, ttl 7 d" in good(daemon.ctl("saved"))
    assert good(daemon.ctl("ttl", "book", "none")) == "book: commit\n"
    client.persist("book", "idle", 7)
    client.ttl("book", 60, erase=True)
    client.pin("book", seconds=100)
    info = client.info("book")
    assert (info.persist, info.idle_s, info.ttl_s, info.ttl_erase) == ("idle", 7, 60, True) and info.pinned_until_ns > info.used_ns
    client.ttl("book", 0), client.persist("book", "default"), client.pin("book", False)
    client.erase_saved("book")
    with pytest.raises(ValueError):
        client.persist("book", "never")
    assert daemon.ctl("ttl", "nothing", "1h").returncode == NOT_FOUND


@pytest.mark.parametrize(
    "arguments",
    [
        ["persist", "book"],
        ["persist", "book", "never"],
        ["persist", "book", "commit", "5min"],
        ["persist", "book", "idle", "0"],
        ["ttl", "book"],
        ["ttl", "book", "5 minutes"],
        ["ttl", "book", "none", "--erase"],
        ["ttl", "book", "9999999999"],
        ["pin", "--ttl", "soon", "book"],
    ],
    ids=" ".join,
)
def test_usage_of_keeping(daemon, arguments):
    assert daemon.ctl(*arguments).returncode == USAGE


def test_fsck_without_a_daemon(daemon, book, tmp_path):
    good(daemon.ctl("save", "book"))
    copy = tmp_path / "disk"
    shutil.copytree(daemon.directory / "disk", copy)
    copy.chmod(0o700)
    (copy / "damaged").rmdir()

    def fsck(directory):
        return subprocess.run([MAGICPIGD, "--fsck", str(directory)], capture_output=True, text=True, timeout=60)

    assert re.fullmatch(r"book: good, 300 tokens, \d+ bytes\n", good(fsck(copy)))
    assert "in use by another daemon" in fsck(daemon.directory / "disk").stderr
    assert fsck(tmp_path / "nowhere").returncode == USAGE
    other = tmp_path / "other"
    other.mkdir(0o700)
    for option in "--fsck", "--gc":  # nothing is made where there is no store
        result = subprocess.run([MAGICPIGD, option, str(other)], capture_output=True, text=True, timeout=60)
        assert (result.returncode, result.stdout) == (USAGE, "")
        assert result.stderr == f"magicpigd: {other} is no store of contexts: it has no directories contexts and segments\n"
        (other / "--help").mkdir(exist_ok=True)
        for arguments in [option, "--help"], [f"{option}=--help"], [f"{option}="]:
            result = subprocess.run([MAGICPIGD, *arguments], capture_output=True, text=True, timeout=60, cwd=other)
            assert result.returncode == USAGE and f"{option} takes a directory (./NAME where it begins with '-')" in result.stderr
        (other / "--help").rmdir()
        assert os.listdir(other) == []
    good(subprocess.run([MAGICPIGD, "--gc", str(copy)], capture_output=True, text=True, timeout=60))
    assert not (copy / "damaged").exists()  # until something is put there
    manifest = copy / "contexts" / "book" / "manifest"
    manifest.write_bytes(manifest.read_bytes()[:-1])
    result = fsck(copy)
    assert result.returncode == 1 and "the manifest of 'book' is damaged" in result.stdout
    assert [path.name.split(".")[0] for path in (copy / "damaged").iterdir()] == ["book"]
    assert good(fsck(copy)) == ""
    good(daemon.ctl("erase", "--yes", "book"))


def test_gc(daemon, client, book, tmp_path):
    disk = daemon.directory / "disk"
    good(daemon.ctl("save", "book"))
    nothing = "0 left by saves, 0 segments no context has, 0 damaged contexts: 0 B are free\n"
    assert good(daemon.ctl("gc")) == nothing
    (segment,) = (disk / "segments").iterdir()
    (disk / "segments" / ("0" * 32 + ".seg")).write_bytes(bytes(1000))
    (disk / "contexts" / "book" / "writing.tmp").write_bytes(bytes(200))
    (disk / "contexts" / "cut-off").mkdir()
    os.link(segment, disk / "contexts" / "cut-off" / segment.name)
    old, new = "lost.0000000000000001", f"lost.{time.time_ns():016x}"
    for name in (old, new, "notes"):
        (disk / "damaged" / name).mkdir()
        (disk / "damaged" / name / "manifest").write_bytes(bytes(10))
    wanted = {"leftovers": 2, "orphans": 1, "damaged": 0, "bytes": 1200, "removed": False}
    assert json.loads(good(daemon.ctl("gc", "--dry-run", "--json"))) == wanted
    assert client.gc(dry_run=True, damaged_days=30).damaged == 1
    copy = tmp_path / "disk"
    shutil.copytree(disk, copy)
    copy.chmod(0o700)
    offline = [MAGICPIGD, "--gc", str(copy), "--damaged-days", "30"]
    told = good(subprocess.run([*offline, "--dry-run"], capture_output=True, text=True, timeout=60))
    assert "contexts/book/writing.tmp" in told.replace("book/", "contexts/book/") and "would be free" in told
    assert (copy / "damaged" / old).exists()
    assert "1 damaged contexts" in good(subprocess.run(offline, capture_output=True, text=True, timeout=60))
    assert not (copy / "damaged" / old).exists() and (copy / "damaged" / new).exists()
    assert json.loads(good(daemon.ctl("gc", "--json"))) == {**wanted, "removed": True}
    assert good(daemon.ctl("gc")) == nothing and not (disk / "contexts" / "cut-off").exists()
    assert re.search(r"0{32}\.seg: a segment no context has, 1000 bytes; removed", daemon.log_text())
    assert client.gc(damaged_days=0).damaged == 2 and (disk / "damaged" / "notes").exists()
    assert re.fullmatch(r"book: good, .*\n", good(daemon.ctl("fsck")))
    shutil.rmtree(disk / "damaged" / "notes")
    good(daemon.ctl("erase", "--yes", "book"))
    assert daemon.ctl("gc", "now").returncode == daemon.ctl("gc", "--damaged", "x").returncode == USAGE
    assert subprocess.run([MAGICPIGD, "--dry-run"], capture_output=True, timeout=60).returncode == USAGE


def test_fsck_finds_damage(daemon, book):
    good(daemon.ctl("save", "book"))
    (segment,) = (daemon.directory / "disk" / "segments").iterdir()
    with open(segment, "r+b") as file:
        file.seek(8192)
        byte = file.read(1)
        file.seek(8192)
        file.write(bytes([byte[0] ^ 1]))
    result = daemon.ctl("fsck")
    assert result.returncode == FAILED and f"segment file {segment.name} is damaged" in result.stderr
    assert "is damaged" in daemon.log_text()
    assert good(daemon.ctl("saved")) == "nothing is saved\n"
    assert len(list((daemon.directory / "disk" / "damaged").iterdir())) == 1


@pytest.mark.parametrize("arguments", [["save"], ["load"], ["save", "--all", "book"], ["erase"], ["evict"], ["pin"], ["saved", "book"]])
def test_disk_usage(daemon, arguments):
    assert daemon.ctl(*arguments).returncode == USAGE


def as_nobody(daemon, mode: int, *arguments: str):
    """magicpigctl as another user, copied to where that user may run it."""
    if os.getuid() != 0:
        pytest.skip("needs root to become another user")
    program = daemon.directory / "magicpigctl"
    shutil.copy(MAGICPIGCTL, program)
    daemon.directory.chmod(0o755)
    daemon.socket.chmod(mode)
    command = [program, "--socket", daemon.socket, *arguments]
    return subprocess.run(
        command, user=65534, group=65534, extra_groups=[], cwd="/", stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )


def test_another_users_context_cannot_be_seen_or_dropped(daemon, book):
    assert as_nobody(daemon, 0o666, "ls").stdout == b"no contexts\n"
    assert as_nobody(daemon, 0o666, "verify").stdout == b""
    assert as_nobody(daemon, 0o666, "export", "book", "/tmp/none.mpig").returncode == PERMISSION
    assert as_nobody(daemon, 0o666, "gc").returncode == PERMISSION
    assert as_nobody(daemon, 0o666, "pin", "book").returncode == PERMISSION
    assert as_nobody(daemon, 0o666, "verify", "book").returncode in (NOT_FOUND, PERMISSION)
    assert as_nobody(daemon, 0o666, "drop", "--yes", "book").returncode in (NOT_FOUND, PERMISSION)
    assert good(daemon.ctl("ls", "-1")) == "book\n"


def test_a_socket_without_permission(daemon):
    result = as_nobody(daemon, 0o600, "ping")
    assert result.returncode == PERMISSION
    assert str(daemon.socket).encode() in result.stderr


@pytest.mark.parametrize("path", [[], ["--queue"]], ids=["control", "queue"])
def test_ping(daemon, path):
    text = good(daemon.ctl("ping", "-c", "3", *path))
    assert re.findall(r"^reply (\d): ", text, re.M) == ["1", "2", "3"]
    assert re.search(r"^3 round trips over the .*: min .*, median .*, max ", text, re.M)
    assert len(good(daemon.ctl("ping", "-q", *path)).splitlines()) == 1
    seen = json.loads(good(daemon.ctl("ping", "-c", "101", "--json", *path)))
    assert seen["count"] == 101
    assert 0 < seen["min_us"] <= seen["median_us"] <= seen["max_us"]


def test_config(daemon):
    text = good(daemon.ctl("config"))
    assert text == good(daemon.ctl("config", "list")) == good(daemon.ctl("config", "get"))
    assert f"daemon.socket = {daemon.socket}\n" in text
    settings = json.loads(good(daemon.ctl("config", "--json")))
    assert settings["daemon.instance"] == daemon.instance
    assert settings["workers.count"] == "2"
    assert len(settings) == len(text.splitlines())


def test_config_get(daemon):
    assert good(daemon.ctl("config", "get", "workers.count")) == "2\n"
    assert json.loads(good(daemon.ctl("config", "get", "pool.dir", "--json"))) == {"pool.dir": str(daemon.pool)}
    result = daemon.ctl("config", "get", "pool.colour")
    assert result.returncode == NOT_FOUND
    assert "pool.colour" in result.stderr


def on_a_terminal(daemon, **environment: str) -> str:
    ours, theirs = open_terminal()
    try:
        process = subprocess.Popen(
            [MAGICPIGCTL, "--socket", str(daemon.socket), "status", "-i", "1"],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            env={"TERM": "xterm", **environment},
        )
        os.close(theirs)
        text = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # EIO: the other side is closed
                break
            if not part:
                break
            text += part
        assert process.wait(60) == OK
    finally:
        os.close(ours)
    return text.decode()


def test_colours_only_on_a_terminal_that_wants_them(daemon):
    assert "\x1b[" in on_a_terminal(daemon)
    assert "\x1b" not in on_a_terminal(daemon, NO_COLOR="1")
    assert "\x1b" not in on_a_terminal(daemon, TERM="dumb")
