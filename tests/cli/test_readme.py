"""The README's programs are the examples, and they run; so do the other examples."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest
from cli_daemon import ROOT

EXAMPLES = pathlib.Path(os.environ.get("MAGICPIG_EXAMPLES", ROOT / "build/examples"))
README = (ROOT / "README.md").read_text()


def block(language: str, containing: str) -> str:
    blocks = [b for b in re.findall(rf"```{language}\n(.*?)```", README, re.S) if containing in b]
    assert len(blocks) == 1
    return blocks[0]


def run(daemon, *command: str) -> str:
    environment = {**os.environ, "MAGICPIG_SOCKET": str(daemon.socket), "PYTHONPATH": str(ROOT / "client-lib/python")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def drop_everything(daemon) -> None:
    for name in daemon.ctl("ls", "-1").stdout.splitlines():
        assert daemon.ctl("drop", "--yes", name).returncode == 0


def test_first_c_program_is_the_example():
    assert block("c", "mpig_connect") == (ROOT / "client-lib/examples/first.c").read_text()


def test_first_python_program_runs(daemon, tmp_path):
    pytest.importorskip("numpy")
    program = tmp_path / "first.py"
    program.write_text(block("python", "magicpig.Client"))
    assert "rows" in run(daemon, sys.executable, str(program))
    drop_everything(daemon)


def example(daemon, name: str, *arguments: str) -> str:
    return run(daemon, str(EXAMPLES / name), *arguments)


def test_first_example(daemon):
    text = example(daemon, "first")
    pairs = [(float(a), float(b)) for a, b in re.findall(r"LSE (\S+) \(exact (\S+)\)", text)]
    assert len(pairs) == 3
    assert all(abs(sampled - exact) < 0.2 for sampled, exact in pairs)
    drop_everything(daemon)


def test_share_example(daemon):
    assert re.search(r"shares \d+ of the prompt's \d+ tokens", example(daemon, "share"))
    drop_everything(daemon)


def test_pipeline_example(daemon):
    assert example(daemon, "pipeline") != ""
    drop_everything(daemon)


def test_two_batches_example(daemon):
    """Over the driver without a GPU, whose streams run at once: that it runs and cleans up is all that can be said here."""
    program = EXAMPLES.parent / "tests" / "gpu" / "examples" / "two_batches"
    if not program.exists():
        pytest.skip(f"{program} is not built")
    text = run(daemon, str(program), "300", "1", "2")
    assert re.search(r"in turn +\S+ ms a step, .*\nside by side +\S+ ms a step, the GPU is idle", text)
    assert daemon.ctl("ls", "-1").stdout == ""
    assert "numbers above 0" in subprocess.run([program, "0"], capture_output=True, text=True).stderr


def test_every_example_is_tested():
    assert {path.stem for path in (ROOT / "client-lib/examples").glob("*.c")} == {"first", "share", "pipeline"}
    assert {path.stem for path in (ROOT / "cuda/examples").glob("*.c")} == {"two_batches"}


def test_every_path_in_the_readme_exists():
    paths = re.findall(r"^([A-Za-z_./-]+)  ", block("text", "client-lib/python/"), re.M)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
