"""The library's interface against the committed one of the last release: programs built with that must go on working."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess

import pytest
from cli_daemon import ROOT

LIBRARY = os.environ["MAGICPIG_LIBRARY"]
RELEASED = ROOT / "client-lib/abi/libmagicpig.so.0.abi"


def facts(text: str) -> dict[str, str]:
    """Name -> what is said of it."""
    found = {}
    for line in text.splitlines():
        kind, rest = line.split(" ", 1)
        if kind in ("struct", "field"):
            name, value = rest.split(": ")
        elif kind == "constant":
            name, value = rest.split(" = ")
        elif kind == "prototype":
            name, value = re.search(r"(mpig_\w+)\(", rest)[1], rest
        elif kind == "symbol":
            name, value = rest.split("@@")
        else:
            name, value = "", rest
        found[f"{kind} {name}".strip()] = value
    return found


def broken(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """What a program that relies on the old interface would fall over."""
    problems = []
    for name, was in old.items():
        now = new.get(name)
        kind = name.split(" ")[0]
        if kind == "field" and re.search(r"\.reserved\d*$", name):
            continue  # there to be used up
        if kind == "struct" and now:
            has_size = f"field {name.split(' ')[1]}.size" in old
            grew = int(now.split()[0]) > int(was.split()[0])
            if grew and has_size:
                continue
        if now != was:
            problems.append(f"{name}: was {was}, is {now or 'gone'}")
    return problems


@pytest.fixture(scope="module")
def built():
    return facts(subprocess.run([ROOT / "tools/build/abi-list", LIBRARY], capture_output=True, text=True, check=True).stdout)


def test_the_list_is_of_something(built):
    kinds = [name.split(" ")[0] for name in built]
    header = (ROOT / "client-lib/include/magicpig.h").read_text()
    assert kinds.count("struct") == len(re.findall(r"^struct mpig_\w+ \{", header, re.M))
    assert kinds.count("prototype") == kinds.count("symbol") == len(re.findall(r"^MPIG_API", header, re.M))
    assert kinds.count("field") > 100 and kinds.count("constant") > 30


def test_nothing_that_was_released_is_broken(built):
    assert broken(facts(RELEASED.read_text()), built) == []


def test_the_soname_is_in_the_file_name(built):
    assert RELEASED.name == f"{built['soname']}.abi"


@pytest.mark.parametrize(
    "old, new, breaks",
    [
        ("symbol mpig_nop", "symbol mpig_no", True),
        ("constant MPIG_ENOENT = -2", "constant MPIG_ENOENT = -3", True),
        ("field mpig_attend.begin: at", "field mpig_attend.begin: behind", True),
        ("prototype int mpig_ping(mpig_client *client)", "prototype int mpig_ping(void)", True),
        ("struct mpig_head_info: ", "struct mpig_head_info: 1", None),
        ("soname libmagicpig.so.0", "soname libmagicpig.so.1", True),
    ],
)
def test_breaks_are_found(old, new, breaks):
    text = RELEASED.read_text()
    assert old in text or breaks is None
    assert bool(broken(facts(text), facts(text.replace(old, new)))) == bool(breaks)


def test_additions_are_allowed():
    text = RELEASED.read_text()
    more = text + "symbol mpig_more@@MAGICPIG_0\nconstant MPIG_MORE = 7\nstruct mpig_more: 8 bytes\n"
    assert broken(facts(text), facts(more)) == []
    assert broken(facts(more), facts(text)) != []
