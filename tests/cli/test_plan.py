"""magicpigctl plan: predicted memory against what contexts of the daemon take, models as they are published, the arithmetic, errors."""

from __future__ import annotations

import json
import os

import pytest
from cli_daemon import ctl, good

OK, FAILED, USAGE, NO_DAEMON = range(4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/magicpig" / f"limit-{os.uname().nodename}"


def plan(*arguments: str) -> dict:
    return json.loads(good(ctl("plan", "--json", *arguments)))


# ---- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layers, query, kv, d, dtype, bits, tables, tokens",
    [
        (2, 6, 2, 64, "bf16", 2, (0, 0), 12000),
        (4, 8, 2, 128, "int8", 4, (0, 0), 9000),
        (3, 4, 4, 64, "fp16", 1, (0, 0), 5000),
        (2, 6, 2, 64, "bf16", 2, (8, 75), 8192),
        (1, 4, 1, 128, "bf16", 2, (0, 0), 65536 + 3000),
        (6, 2, 1, 64, "bf16", 0, (0, 0), 4097),
        (2, 4, 2, 80, "int8", 2, (0, 0), 20000),
        (1, 8, 1, 256, "bf16", 1, (10, 20), 15000),
        (2, 4, 2, 128, "int8", 2, (9, 30), 10000),
        (2, 4, 2, 96, "fp16", 0, (10, 40), 7000),
        (1, 1, 1, 64, "int8", 1, (0, 0), 150000),  # the last segment has an upper layer
    ],
)
def test_memory(daemon, client, layers, query, kv, d, dtype, bits, tables, tokens):
    import magicpig
    import numpy

    layer = magicpig.Layer(
        query_heads=query, kv_heads=kv, d_k=d, row_dtype={"fp16": "f16", "int8": "i8"}.get(dtype, dtype), signature_bits=bits, paper=tables
    )
    random = numpy.random.default_rng(1)
    with client.create("planned", magicpig.Spec([layer] * layers)) as context, client.queue() as queue:
        k, v = (random.standard_normal((tokens, kv, d), dtype=numpy.float32) for _ in range(2))
        for number in range(layers):
            queue.append(context, number, 0, k, v)
        queue.commit(context, 0, numpy.arange(tokens, dtype=numpy.uint32), seal=True)
        seen = client.info("planned")
        saved = client.save("planned").bytes
    client.drop("planned")
    client.erase_saved("planned")
    extra = ("--tables", f"{tables[0]},{tables[1]}") if tables[0] else ()
    told = plan(f"{layers}/{query}/{kv}/{d}", "-t", str(tokens), "--rows", dtype, "--bits", str(bits), *extra)
    truth = seen.rows_bytes + seen.index_bytes + seen.metadata_bytes
    assert told["context_bytes"] == pytest.approx(truth, rel=0.02)
    assert told["rows_bytes"] == pytest.approx(seen.rows_bytes, rel=0.02)
    if bits or tables[0]:
        assert told["index_bytes"] == pytest.approx(seen.index_bytes, rel=0.02)
    assert told["disk_bytes"] == pytest.approx(saved, rel=0.02)


def test_shared_prefix_is_stored_once():
    alone, together = plan("8/8/2/64", "-t", "20000", "-c", "1"), plan("8/8/2/64", "-t", "20000", "-c", "10", "--shared", "18000")
    assert together["context_bytes"] == alone["context_bytes"]
    assert together["pool_bytes"] == pytest.approx(1.9 * alone["context_bytes"], rel=0.02)  # 18,000 once and ten times 2,000
    assert plan("8/8/2/64", "-t", "20000", "-c", "10")["pool_bytes"] == 10 * alone["context_bytes"]


# ---- models -----------------------------------------------------------------------------------------------------------

LLAMA = {"model_type": "llama", "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
GEMMA = {
    "model_type": "gemma3_text", "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
    "hidden_size": 1152, "sliding_window": 512,
    "layer_types": [("full" if i % 6 == 5 else "sliding") + "_attention" for i in range(26)],
}  # fmt: skip


def config(tmp_path, contents) -> str:
    path = tmp_path / "config.json"
    path.write_text(contents if isinstance(contents, str) else json.dumps(contents))
    return str(path)


def test_a_llama(tmp_path):
    by_file, by_shape = plan(config(tmp_path, LLAMA), "-t", "98304"), plan("32/32/8/128", "-t", "98304")
    assert by_file.pop("model") == "llama" and by_shape.pop("model") == "model"
    assert by_file == by_shape
    assert by_file["rows_bytes"] == 32 * 8 * 98304 * 512
    assert by_file["index_bytes"] / (32 * 8 * 98304) == pytest.approx(34, rel=0.02)  # 32 bytes of codes and a factor a row, in pages
    assert by_file["token_dense_bytes"] == by_file["rows_bytes"]
    assert by_file["token_codes_bytes"] == 32 * 8 * 98304 * 34
    assert by_file["token_rows_bytes"] == pytest.approx(by_file["rows_bytes"] * (1 - 0.98**4))


def test_a_gemma_keeps_sliding_layers_only_if_asked(tmp_path):
    path = config(tmp_path, {"text_config": GEMMA})
    dropped, kept = plan(path, "-t", "32768"), plan(path, "-t", "32768", "--keep-sliding")
    assert (dropped["stored_layers"], kept["stored_layers"]) == (4, 26)
    assert dropped["rows_bytes"] == 4 * 32768 * 1024 and kept["rows_bytes"] == 26 * 32768 * 1024
    assert kept["index_bytes"] == pytest.approx(dropped["index_bytes"], rel=0.02)  # sliding layers have none
    assert kept["token_codes_bytes"] - dropped["token_codes_bytes"] == 22 * 512 * 1024  # their windows
    assert dropped["window_bytes"] == 4 * 1024 * 1024 + 22 * 512 * 1024


def test_windows_that_are_not_used(tmp_path):
    qwen = LLAMA | {"sliding_window": 4096, "use_sliding_window": False}
    assert plan(config(tmp_path, qwen))["stored_layers"] == 32
    assert plan(config(tmp_path, LLAMA | {"sliding_window": None}))["stored_layers"] == 32


@pytest.mark.parametrize(
    "contents, why",
    [
        ("{", "line 1: "),
        ("[]", "not the configuration of a model"),
        ("{}", "num_hidden_layers, num_attention_heads and head_dim or hidden_size must be numbers"),
        (LLAMA | {"num_hidden_layers": "32"}, "must be numbers"),
        (LLAMA | {"num_hidden_layers": 100000}, "must be numbers"),
        (LLAMA | {"num_attention_heads": 0}, "must be numbers"),
        (LLAMA | {"num_key_value_heads": 5}, "32 query heads on 5 KV heads: up to 256, a multiple"),
        (LLAMA | {"head_dim": 72}, "heads of d 72: 64, 80, 96, 128 or 256"),
        (LLAMA | {"kv_lora_rank": 512}, "latent attention"),
        (LLAMA | {"layer_types": ["full_attention"]}, "layer_types does not name 32 layers"),
        (LLAMA | {"layer_types": ["linear_attention"] * 32}, "layer 0 is of type linear_attention"),
    ],
)
def test_configurations_it_cannot_plan(tmp_path, contents, why):
    path = config(tmp_path, contents)
    result = ctl("plan", path)
    assert result.returncode == FAILED and result.stdout == ""
    assert result.stderr.startswith(f"magicpigctl plan: {path}: ") and why in result.stderr


def test_no_such_file(tmp_path):
    result = ctl("plan", str(tmp_path / "none"))
    assert result.returncode == FAILED and result.stderr == f"magicpigctl plan: {tmp_path}/none: No such file or directory\n"


# ---- time, bandwidth, text ---------------------------------------------------------------------------------------------


def test_nothing_is_said_of_time_without_a_measurement():
    seen = plan("32/32/8/128", "--rate", "5", "-c", "3")
    assert seen["ms_per_token"] is None and seen["cores"] is None
    assert seen["bandwidth_bytes_per_s"] == pytest.approx(15 * (seen["token_codes_bytes"] + seen["token_rows_bytes"]))
    text = good(ctl("plan", "32/32/8/128"))
    assert "time         not known: `magicpigctl bench --memory` measures this machine, --measure a running daemon\n" in text
    assert "cores" not in text


def test_time_from_what_bench_found(cache):
    cache.parent.mkdir(parents=True)
    host = os.uname().nodename
    cache.write_text(
        f"magicpig limit 1\nhost {host}\nstream_bytes_per_s 80e9\ngather_bytes_per_s 40e9\nthreads 8\nrow_bytes 512\nmeasured_ns 1\n"
    )
    seen = plan("32/32/8/128", "-t", "98304", "--rate", "20", "-c", "2")
    seconds = seen["token_codes_bytes"] / 80e9 + seen["token_rows_bytes"] / 40e9
    assert seen["ms_per_token"] == pytest.approx(1e3 * seconds) and seen["measured"] is False
    assert seen["cores"] == pytest.approx(8 * seconds * 40, abs=1)
    text = good(ctl("plan", "32/32/8/128", "-t", "98304", "--rate", "100"))
    assert "one context alone cannot do 100 tokens/s here: " in text


def test_text():
    lines = good(ctl("plan", "32/32/8/128", "-t", "98304", "-c", "4", "--rate", "10", "--gpu-mem", "24G", "--shared", "90000")).splitlines()
    assert lines[:2] == [
        "model        model: 32 layers, of 32 of them the daemon keeps rows; 32 query heads on 8 KV heads of d 128",
        lines[1],
    ]
    assert lines[1].startswith("one context  98,304 tokens in bf16: rows 12.0 GiB, index ")
    assert [line[:12].strip() for line in lines] == "model,one context,DRAM,disk,each token,bandwidth,GPU,,time".split(",")
    assert "90,000 tokens of them shared; pool.size = " in lines[2]
    assert lines[7].strip() == "in 24.0 GiB: 192 contexts with the daemon, 2 without"


@pytest.mark.parametrize("k, l, d", [(8, 75, 64), (10, 150, 128)])
def test_tables_are_reckoned_as_the_daemon_counts(daemon, client, k, l, d):
    """Rows chosen and bytes looked at by `paper` on keys without structure: a mean over 64 queries of four heads, of standard error below 2 %."""
    import magicpig
    import numpy

    tokens, random = 12000, numpy.random.default_rng(5)
    layer = magicpig.Layer(query_heads=4, kv_heads=2, d_k=d, paper=(k, l))
    with client.create("tables", magicpig.Spec([layer], seed=3)) as context, client.queue() as queue:
        keys, values = (random.standard_normal((tokens, 2, d), dtype=numpy.float32) for _ in range(2))
        queue.append(context, 0, 0, keys, values)
        queue.commit(context, 0, numpy.arange(tokens, dtype=numpy.uint32), seal=True)
        queries = random.standard_normal((64, 4, d), dtype=numpy.float32)
        answers = [queue.attend(context, 0, q, proposal="paper") for q in queries]
    client.drop("tables")
    told = plan(f"1/4/2/{d}", "-t", str(tokens), "--bits", "0", "--tables", f"{k},{l}", "--proposal", "paper")
    share = numpy.mean([a.rows.mean() for a in answers]) / tokens
    assert told["share_of_rows"] == pytest.approx(share, rel=0.1)
    assert told["token_rows_bytes"] == pytest.approx(numpy.mean([a.bytes_read for a in answers]), rel=0.1)
    assert told["token_codes_bytes"] == 0 and told["proposal"] == "paper"
    given = plan(f"1/4/2/{d}", "-t", str(tokens), "--bits", "0", "--tables", f"{k},{l}", "--proposal", "paper", "--budget", str(share))
    assert given["token_rows_bytes"] == pytest.approx(told["token_rows_bytes"], rel=0.1) and given["share_of_rows"] == share


def test_text_of_tables():
    text = good(ctl("plan", "32/32/8/128", "-t", "98304", "--tables", "10,150", "--proposal", "paper"))
    assert "of lists and rows, here and there: of rows without structure the tables choose 1.57 % for a head; of a model's, more" in text
    text = good(ctl("plan", "32/32/8/128", "-t", "98304", "--tables", "10,150", "--proposal", "paper", "--budget", "0.04"))
    assert "when the tables choose 4 % of the rows for a head" in text


def test_tables_measured(daemon):
    told = json.loads(good(daemon.ctl("plan", "4/4/1/64", "-t", "9000", "--tables", "6,20", "--proposal", "paper", "--measure", "--json")))
    assert told["measured"] is True and told["ms_per_token"] > 0
    assert good(daemon.ctl("ls")) == "no contexts\n"


def test_measured(daemon):
    """That a measurement is made, agrees with itself and leaves nothing behind; how well it predicts, bench_plan.py tells."""
    seen = json.loads(good(daemon.ctl("plan", "16/4/1/64", "-t", "16384", "--measure", "--json")))
    assert seen["measured"] is True and seen["ms_per_token"] > 0
    assert good(daemon.ctl("ls")) == "no contexts\n"
    text = good(daemon.ctl("plan", "16/4/1/64", "-t", "16384", "--measure"))
    assert "a layer, extrapolated from this daemon with 2 workers)" in text


def test_measured_in_what_is_left_of_the_pool(daemon, client):
    import magicpig
    import numpy

    tokens, random = 100000, numpy.random.default_rng(1)
    with client.create("large", magicpig.Spec([magicpig.Layer(query_heads=1, kv_heads=1, d_k=64)])) as context, client.queue() as queue:
        queue.append(context, 0, 0, *(random.standard_normal((tokens, 1, 64), dtype=numpy.float32) for _ in range(2)))
        queue.commit(context, 0, numpy.arange(tokens, dtype=numpy.uint32), seal=True)
        status = client.status()
        assert status.pool_bytes - status.pool_used < 45 << 20  # and 52 MiB would be taken if there were room
        assert json.loads(good(daemon.ctl("plan", "16/4/1/64", "-t", "16384", "--measure", "--json")))["ms_per_token"] > 0
    client.drop("large")


def test_measuring_what_cannot_be(daemon, tmp_path):
    assert ctl("--socket", str(tmp_path / "none"), "plan", "2/2/1/64", "--measure").returncode == NO_DAEMON
    assert daemon.ctl("plan", "2/2/1/64", "--measure", "--bits", "0").returncode == USAGE
    result = daemon.ctl("plan", "2/2/1/64", "-t", "100", "--measure")
    assert result.returncode == FAILED and "needs 8192 tokens" in result.stderr


def test_wrong_usage():
    for arguments in ([], ["a", "b"], ["2/2/1/64", "-t", "0"], ["2/2/1/64", "-c", "0"], ["2/2/1/64", "--rows", "fp8"],
                      ["2/2/1/64", "--bits", "3"], ["2/2/1/64", "--tables", "8"], ["2/2/1/64", "--tables", "17,4"],
                      ["2/2/1/64", "--budget", "2"], ["2/2/1/64", "--gpu-mem", "24Q"], ["2/2/1/64", "--rate", "0"],
                      ["2/2/1/64", "--shared", "131072"], ["2/2/1/64", "--proposal", "paper"],
                      ["2/2/1/64", "--proposal", "dense", "--tables", "8,75"]):  # fmt: skip
        assert ctl("plan", *arguments).returncode == USAGE, arguments
    for shape in ("0/2/1/64", "2/3/2/64", "2/2/1/65", "600/2/1/64"):
        result = ctl("plan", shape)
        assert result.returncode == FAILED and result.stderr.startswith(f"magicpigctl plan: {shape}: ")
