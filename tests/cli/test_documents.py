"""What the operator's guide says exists: options, commands, files, and the words of the messages that it explains."""

from __future__ import annotations

import re

import pytest
from cli_daemon import ROOT, ctl

GUIDE = (ROOT / "docs/operator.md").read_text()
SAMPLE = (ROOT / "config/magicpigd.conf").read_text()


def options() -> set[str]:
    section, names = "", set()
    for line in SAMPLE.splitlines():
        if found := re.fullmatch(r"\[(\w+)\]", line):
            section = found[1]
        elif found := re.match(r"#?(\w+) = ", line):
            names.add(f"{section}.{found[1]}")
    return names


def test_options_exist():
    sections = {name.split(".")[0] for name in options()}
    mentioned = {name for name in re.findall(r"\b([a-z]+\.[a-z_]+[a-z])\b", GUIDE) if name.split(".")[0] in sections}
    assert len(mentioned) > 10
    assert mentioned <= options()


def test_commands_exist():
    listed = ctl("--help").stdout.split("Commands:\n")[1].split("\n\n")[0]
    commands = {line.split()[0] for line in listed.splitlines()}
    mentioned = set(re.findall(r"magicpigctl ([a-z-]+)", GUIDE))
    assert {"status", "config", "reload", "save", "show"} <= mentioned <= commands


def test_links_lead_somewhere():
    for path in [ROOT / "docs/operator.md", ROOT / "README.md", ROOT / "systemd/README.md"]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
    assert "docs/operator.md" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "words",
    [
        "already serves",
        "the pool is full",
        "but the pool attached has",
        "io_uring is refused here",
        "cannot be pinned",
        "put aside under damaged/",
        "is not saved: ",
        "wait for their turn",
        "attached %llu contexts",
        "nobody listens on",
        "uid %u holds",
    ],
)
def test_messages_that_are_explained_are_said(words):
    sources = [*ROOT.glob("daemon/**/*.c"), *ROOT.glob("client-lib/src/*.c")]
    assert any(words in path.read_text() for path in sources), words
    shown = {"attached %llu contexts": "attached 0 contexts", "uid %u holds": "uid N holds", "is not saved: ": "is not saved: "}
    assert shown.get(words, words) in GUIDE
