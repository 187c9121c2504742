"""One version, wherever it is written."""

from __future__ import annotations

import re

from cli_daemon import ROOT


def written(path: str, pattern: str) -> str:
    return re.search(pattern, (ROOT / path).read_text(), re.M)[1]


def test_the_version_is_the_same_everywhere():
    version = written("Makefile", r"^VERSION := (\S+)$")
    header = [written("client-lib/include/magicpig.h", rf"^#define MPIG_VERSION_{part} (\d+)$") for part in ("MAJOR", "MINOR", "PATCH")]
    assert ".".join(header) == version
    assert written("client-lib/python/pyproject.toml", r'^version = "(.*)"$') == version
    assert written("debian/changelog", r"^magicpigd \(([^)]*)\)") == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_package_of_the_library_is_named_for_its_soname():
    number = written("Makefile", r"-soname,libmagicpig\.so\.(\d+)")
    assert f"Package: libmagicpig{number}\n" in (ROOT / "debian/control").read_text()
    assert (ROOT / f"debian/libmagicpig{number}.install").exists()
    assert (ROOT / f"client-lib/abi/libmagicpig.so.{number}.abi").exists()
