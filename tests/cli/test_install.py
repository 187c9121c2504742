"""make install: a program built against the installed library runs, and uninstall leaves nothing."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest
from cli_daemon import MAGICPIGCTL, ROOT


def files(directory: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())


def make(target: str, destination: pathlib.Path) -> None:
    build = os.path.relpath(pathlib.Path(MAGICPIGCTL).parent, ROOT)
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    # -o all: install what has been built, with whatever compiler
    command = ["make", "-s", "-o", "all", target, f"B={build}", f"DESTDIR={destination}", "PREFIX=/usr"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    destination = tmp_path_factory.mktemp("destination")
    make("install", destination)
    yield destination
    make("uninstall", destination)
    assert files(destination) == []


def test_what_is_installed(installed):
    assert {
        "usr/sbin/magicpigd",
        "usr/bin/magicpigctl",
        "usr/bin/magicpig-bench",
        "usr/lib/libmagicpig.so",
        "usr/lib/libmagicpig.so.0",
        "usr/lib/libmagicpig.a",
        "usr/lib/pkgconfig/magicpig.pc",
        "usr/include/magicpig.h",
        "etc/magicpig/magicpigd.conf.sample",
        "usr/share/man/man8/magicpigd.8",
        "usr/share/man/man5/magicpigd.conf.5",
        "usr/share/man/man5/magicpig-format.5",
        "usr/share/man/man1/magicpigctl.1",
        "usr/share/man/man1/magicpig-bench.1",
        "usr/share/man/man3/libmagicpig.3",
        "usr/share/bash-completion/completions/magicpigctl",
        "usr/share/bash-completion/completions/magicpigd",
        "usr/share/zsh/site-functions/_magicpigctl",
        "usr/lib/systemd/system/magicpigd.service",
        "usr/lib/systemd/system/magicpigd.socket",
        "usr/lib/systemd/system/magicpigd@.service",
        "usr/lib/systemd/system/magicpigd@.socket",
        "usr/lib/systemd/system/magicpigd-metrics.service",
        "usr/lib/systemd/system/magicpigd-metrics.socket",
        "usr/lib/systemd/catalog/magicpigd.catalog",
        "usr/lib/sysusers.d/magicpig.conf",
        "usr/lib/tmpfiles.d/magicpig.conf",
        "usr/share/magicpig/grafana/magicpigd.json",
    } <= set(files(installed))
    cuda = {"usr/lib/libmagicpig-cuda.so.0", "usr/lib/libmagicpig-cuda.a", "usr/lib/pkgconfig/magicpig-cuda.pc", "usr/include/magicpig_cuda.h"}
    assert cuda & set(files(installed)) in (set(), cuda)  # where it was built with nvcc
    assert (installed / "usr/lib/libmagicpig.so").resolve() == (installed / "usr/lib/libmagicpig.so.0").resolve()


@pytest.mark.parametrize("static", [False, True], ids=["shared", "static"])
def test_a_program_against_it(installed, daemon, tmp_path, static):
    compiler = shutil.which("cc")
    if not compiler or not shutil.which("pkg-config"):
        pytest.skip("needs cc and pkg-config")
    environment = {
        **os.environ,
        "PKG_CONFIG_PATH": str(installed / "usr/lib/pkgconfig"),
        "PKG_CONFIG_SYSROOT_DIR": str(installed),
        "PKG_CONFIG_ALLOW_SYSTEM_CFLAGS": "1",
        "PKG_CONFIG_ALLOW_SYSTEM_LIBS": "1",
        "MAGICPIG_SOCKET": str(daemon.socket),
        "LD_LIBRARY_PATH": "" if static else str(installed / "usr/lib"),
    }
    query = ["pkg-config", "--cflags", "--libs", *(["--static"] if static else []), "magicpig"]
    flags = subprocess.run(query, env=environment, capture_output=True, text=True, check=True).stdout.split()
    if static:
        flags = [str(installed / "usr/lib/libmagicpig.a") if flag == "-lmagicpig" else flag for flag in flags]
    program = tmp_path / "first"
    build = [compiler, "-o", str(program), str(ROOT / "client-lib/examples/first.c"), *flags, "-lm"]
    assert subprocess.run(build, env=environment).returncode == 0
    result = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "rows were read" in result.stdout
    daemon.ctl("drop", "--yes", "first-example")
