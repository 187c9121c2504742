"""Completion in bash, with a daemon to ask; and that zsh can read its own."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest
from cli_daemon import MAGICPIGCTL, ctl

BUILT = pathlib.Path(MAGICPIGCTL).parent / "completions"

SCRIPT = """
source "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_${COMP_WORDS[0]} 2> /dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


def complete(daemon, *words: str) -> list[str]:
    environment = {**os.environ, "PATH": f"{pathlib.Path(MAGICPIGCTL).parent.resolve()}:{os.environ['PATH']}"}
    if daemon:
        environment["MAGICPIG_SOCKET"] = str(daemon.socket)
    result = subprocess.run(
        ["bash", "--norc", "-c", SCRIPT, "bash", BUILT / "magicpigctl.bash", *words],
        capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, timeout=60,
    )
    assert result.returncode == 0 and result.stderr == "", result.stderr
    return sorted(filter(None, result.stdout.splitlines()))


def commands() -> list[str]:
    listed = ctl("--help").stdout.split("Commands:\n")[1].split("\n\n")[0]
    return [line.split()[0] for line in listed.splitlines()]


def test_commands():
    assert set(complete(None, "magicpigctl", "")) >= set(commands())
    assert complete(None, "magicpigctl", "stat") == ["status"]
    assert "--socket" in complete(None, "magicpigctl", "--")


def test_options_of_a_command():
    assert complete(None, "magicpigctl", "ping", "--c") == ["--count"]
    assert complete(None, "magicpigctl", "evict", "--d") == ["--dry-run"]
    assert complete(None, "magicpigctl", "bench", "--h") == ["--heads", "--help"]
    assert complete(None, "magicpigctl", "--json", "evict", "--d") == ["--dry-run"]


def test_names_of_contexts(daemon, book):
    assert complete(daemon, "magicpigctl", "show", "b") == ["book"]
    assert complete(daemon, "magicpigctl", "--socket", str(daemon.socket), "drop", "bo") == ["book"]
    assert complete(daemon, "magicpigctl", "load", "b") == []
    assert daemon.ctl("save", "book").returncode == 0
    assert complete(daemon, "magicpigctl", "load", "b") == ["book"]
    assert daemon.ctl("erase", "--yes", "book").returncode == 0


def test_a_name_is_never_run(daemon, client, tmp_path):
    """Whoever may make a context chooses its name, and root may complete it."""
    magicpig = pytest.importorskip("magicpig")
    spec = magicpig.Spec([magicpig.Layer(query_heads=1, kv_heads=1, d_k=64)], fingerprint=b"x")
    names = ["evil $(touch x)", "evil`touch x`", "evil; touch x", "evil $HOME *"]
    for name in names:
        client.create(name, spec).close()
    found = complete(daemon, "magicpigctl", "show", "evil")
    assert not (pathlib.Path.cwd() / "x").exists()
    quoted = subprocess.run(
        ["bash", "-c", "eval \"words=($1)\"; printf '%s\\n' \"${words[@]}\"", "bash", " ".join(found)], capture_output=True, text=True
    )
    assert sorted(quoted.stdout.splitlines()) == sorted(names)
    for name in names:
        client.drop(name)


def test_keys_and_files_of_config(daemon, tmp_path):
    assert complete(None, "magicpigctl", "config", "d") == ["diff"]
    assert complete(daemon, "magicpigctl", "config", "get", "limits.bytes") == ["limits.bytes_per_gid", "limits.bytes_per_uid"]
    (tmp_path / "one.conf").touch()
    assert complete(None, "magicpigctl", "config", "test", f"{tmp_path}/o") == [f"{tmp_path}/one.conf"]


def test_contexts_and_files_of_trace(daemon, book, tmp_path):
    (tmp_path / "one.queries").touch()
    assert complete(daemon, "magicpigctl", "trace", "re") == ["record", "replay"]
    assert complete(daemon, "magicpigctl", "trace", "record", "bo") == ["book"]
    assert complete(daemon, "magicpigctl", "trace", "replay", f"{tmp_path}/o") == [f"{tmp_path}/one.queries"]
    assert complete(daemon, "magicpigctl", "trace", "replay", "--ex") == ["--exact"]


def test_the_daemons_options():
    assert complete(None, "magicpigd", "--pool.s") == ["--pool.size="]
    assert complete(None, "magicpigd", "--ver") == ["--version"]


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
def test_zsh_can_read_its_completion():
    result = subprocess.run(["zsh", "-n", BUILT / "_magicpigctl"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_zsh_knows_every_command():
    text = (BUILT / "_magicpigctl").read_text()
    for command in commands():
        assert f"        '{command}:" in text and f"    {command}) _arguments" in text
