"""The wheel: it carries the library, and works alone, outside the source tree."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest
from cli_daemon import MAGICPIGCTL, ROOT

LIBRARY = pathlib.Path(MAGICPIGCTL).parent / "libmagicpig.so.0"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [ROOT / "tools/build/wheel", sys.executable, LIBRARY, out]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


def test_what_is_inside(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {f"magicpig/{path.name}" for path in (ROOT / "client-lib/python/magicpig").glob("*.py")}
    assert sources | {"magicpig/py.typed", "magicpig/libmagicpig.so.0"} <= names
    assert not any("test" in name or "__pycache__" in name for name in names)
    assert wheel.name.startswith("magicpig-0.") and "-py3-none-manylinux_2_" in wheel.name


def test_the_library_needs_only_libc(wheel):
    text = subprocess.run(["readelf", "-d", LIBRARY], capture_output=True, text=True, check=True).stdout
    needed = {line.split("[")[1].rstrip("]") for line in text.splitlines() if "(NEEDED)" in line}
    if any("san" in name for name in needed):
        pytest.skip("built with a sanitizer")
    assert needed <= {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2"}


def test_it_works_alone(wheel, daemon, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name not in ("MAGICPIG_LIBRARY", "PYTHONPATH")}
    environment |= {"MAGICPIG_SOCKET": str(daemon.socket), "PYTHONPATH": str(tmp_path)}
    program = (
        "import magicpig, magicpig._lib; c = magicpig.Client(); c.ping()\n"
        "print(magicpig._lib.library()._name, c.status().instance)"
    )
    result = subprocess.run([sys.executable, "-c", program], env=environment, cwd="/", capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(tmp_path / "magicpig/libmagicpig.so.0"), daemon.instance]
