"""bench_gpu and bench_ingest over the driver without a GPU: a report that cannot be written is said before the work, and one that is there is
whole. Their times mean nothing there."""

import json
import os
import pathlib
import subprocess

import pytest

TREE = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("MAGICPIG_BUILD", TREE / "build")).resolve()


def bench(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    program = BUILD / "tests" / "gpu" / name
    if not program.exists():
        pytest.skip(f"{name} over the driver without a GPU is not built")
    environment = {**os.environ, "MAGICPIGD": str(BUILD / "magicpigd"), **environment}
    return subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("name", ["bench_gpu", "bench_ingest"])
def test_a_report_that_cannot_be_written_is_said_at_the_start(name, tmp_path):
    path = tmp_path / "none" / "report.json"
    result = bench(name, "--json", str(path), MAGICPIGD="/nonexistent")  # it would get no further than to its daemon
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr == f"{name}: --json {path}: No such file or directory\n"


def test_the_report_is_whole(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("the one before")
    result = bench("bench_ingest", "--tokens", "256", "--chunk", "64", "--json", str(path))
    assert result.returncode == 0, result.stdout + result.stderr
    names = [line["name"] for line in json.loads(path.read_text())["measurements"]]
    assert any(name.startswith("prefill") for name in names) and list(tmp_path.iterdir()) == [path]
