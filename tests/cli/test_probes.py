"""The static probes of the daemon: the notes a tracer finds them by, and that their promise in the README is kept."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from cli_daemon import MAGICPIGD, ROOT


def compiles(tmp_path, *flags: str) -> str:
    source = tmp_path / "probe.c"
    source.write_text('#include "daemon/base/probe.h"\nint main(int n, char **v) { (void)v; PROBE3(a, n, 1, 2L); PROBE5(b, n, 1, 2, 3, v); return 0; }\n')
    command = ["cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-I", str(ROOT), *flags, "-o", str(tmp_path / "probe"), str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return notes(tmp_path / "probe")


def notes(program) -> str:
    return subprocess.run(["readelf", "--notes", str(program)], capture_output=True, text=True, check=True).stdout


needs_tools = pytest.mark.skipif(not (shutil.which("readelf") and shutil.which("cc")), reason="needs cc and readelf")


def documented() -> dict[str, int]:
    """Probes of the README's table and how many arguments each has."""
    section = (ROOT / "daemon/server/README.md").read_text().split("## Probes")[1].split("\n## ")[0]
    probes = {}
    for names, arguments in re.findall(r"^\| (`.*?`) \| .*? \| (.*?) \|$", section, re.M):
        for name in re.findall(r"`(\w+)`", names):
            probes[name] = arguments.count(",") + 1
    return probes


@needs_tools
def test_every_probe_is_there(tmp_path):
    if "stapsdt" not in compiles(tmp_path):
        pytest.skip("sys/sdt.h is not installed: the daemon has no probes")
    found = re.findall(r"Provider: (\w+)\s+Name: (\w+)\s+Location: .*\s+Arguments: (.*)", notes(MAGICPIGD))
    ours = {(name, len(arguments.split())) for provider, name, arguments in found if provider == "magicpigd"}
    assert ours == set(documented().items())
    assert {"submit", "start", "sampled", "done", "append", "seal", "save"} <= {name for name, _ in ours}


@needs_tools
def test_without_them(tmp_path):
    assert "stapsdt" not in compiles(tmp_path, "-DMPIG_NO_PROBES")
