"""The manual pages: they can be read without a warning, and leave out no option, command or function."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAGICPIGD = os.environ.get("MAGICPIGD", str(ROOT / "build/magicpigd"))
MAGICPIGCTL = os.environ.get("MAGICPIGCTL", str(ROOT / "build/magicpigctl"))
PAGES = pathlib.Path(MAGICPIGCTL).parent / "man"
NAMES = ["magicpigd.8", "magicpigd.conf.5", "magicpigctl.1", "magicpig-bench.1", "libmagicpig.3", "magicpig-format.5"]

needs_man = pytest.mark.skipif(not shutil.which("man"), reason="needs man (package man-db)")


def text_of(name: str) -> str:
    result = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", PAGES / name],
        capture_output=True,
        text=True,
        env={**os.environ, "MANWIDTH": "500", "MAN_KEEP_FORMATTING": "", "MANROFFSEQ": "", "LC_ALL": "C.UTF-8"},
    )
    assert result.returncode == 0 and result.stderr == "", result.stderr
    return re.sub(r"\x1b\[[0-9;]*m|.\x08", "", result.stdout)


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_all_pages_are_built():
    assert sorted(path.name for path in PAGES.iterdir() if path.suffix != ".scd") == sorted(NAMES)


@needs_man
@pytest.mark.parametrize("name", NAMES)
def test_a_page_reads_well(name):
    text = text_of(name)
    for heading in ("NAME", "SYNOPSIS" if name != "magicpigd.conf.5" else "OPTIONS", "DESCRIPTION", "SEE ALSO"):
        assert re.search(rf"^{heading}$", text, re.M), heading
    assert not re.search(r"@[A-Z]+@", text)  # nothing was left to fill in
    assert re.search(r"magicpigd \d+\.\d+\.\d+", text)


@needs_man
def test_pages_that_are_referred_to_exist():
    ours = {name.rsplit(".", 1)[0] for name in NAMES}
    for name in NAMES:
        for page, section in re.findall(r"\b(magicpig[\w.-]*|libmagicpig)\((\d)\)", text_of(name)):
            assert page in ours and f"{page}.{section}" in NAMES, f"{name} refers to {page}({section})"


@needs_man
def test_every_option_of_the_daemon():
    text = text_of("magicpigd.conf.5")
    options = re.findall(r"^  --(\w+)\.(\w+)=(\S*) +(.+)$", output_of(MAGICPIGD, "--help"), re.M)
    assert len(options) > 40
    for section, key, fallback, help_text in options:
        assert re.search(rf"^ +\[{section}\]$", text, re.M), section
        assert re.search(rf"^ +{key} = ?{re.escape(fallback)}\n +{re.escape(help_text.strip())} Allowed: ", text, re.M), key


@needs_man
def test_every_argument_of_the_daemon():
    text = text_of("magicpigd.8")
    arguments = set(re.findall(r"^  (--[a-z-]+)", output_of(MAGICPIGD, "--help").split("Options, with")[0], re.M))
    assert {"--config", "--set", "--print-config", "--fsck", "--help"} <= arguments
    for argument in arguments | {"--version"}:
        assert argument in text
    for variable in re.findall(r'getenv\("(\w+)"\)', (ROOT / "config/options.c").read_text()):
        assert variable in text


def commands() -> list[str]:
    listed = output_of(MAGICPIGCTL, "--help").split("Commands:\n")[1].split("\n\n")[0]
    return [line.split()[0] for line in listed.splitlines()]


@needs_man
def test_every_command_and_its_options():
    text = text_of("magicpigctl.1")
    body = text.split("\nCOMMANDS\n")[1].split("\nEXIT STATUS\n")[0]
    parts = dict(re.findall(r"^ {7}(\S+)[^\n]*\n((?:(?! {7}\S)[^\n]*\n)*)", body, re.M))
    assert list(parts) == commands()
    for command in commands():
        for option in re.findall(r"^  ((?:-\w, )?--[\w-]+)", output_of(MAGICPIGCTL, command, "--help"), re.M):
            where = text if option in ("--socket", "--json", "-h, --help") else parts[command]
            assert option in where, f"{command} {option}"


@needs_man
def test_every_function():
    text = text_of("libmagicpig.3")
    functions = re.findall(r"MPIG_API[^;(]*?\b(mpig_\w+)\(", (ROOT / "client-lib/include/magicpig.h").read_text())
    assert len(functions) > 40
    for function in functions:
        assert f"{function}(" in text, function
    assert '= value\\n" lines' in text  # backslashes survive


@needs_man
def test_the_format_is_all_there():
    """Every word of FORMAT.md, in its order, but for marks and lines of tables."""
    text = text_of("magicpig-format.5")
    for line in (ROOT / "daemon/disk/FORMAT.md").read_text().splitlines():
        if line.startswith("#") or "---" in line or not line:
            continue
        for cell in re.sub(r"[`*]", "", line).strip("| ").split(" | "):
            words = cell.split()[:6]
            assert re.search(r"[\s│]+".join(map(re.escape, words)), text), cell
