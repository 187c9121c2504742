"""The first hour of a new user, with what make install puts in place; tests/packages/check-deb does the same with the Debian packages."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest
from cli_daemon import ROOT
from test_install import make

EXAMPLES = pathlib.Path(os.environ.get("MAGICPIG_EXAMPLES", ROOT / "build/examples"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be the service's user and an ordinary one")
@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv (package util-linux)")
def test_a_new_user():
    base = pathlib.Path("/var/tmp") / f"magicpig-new-user-{os.getpid()}"
    instance = base.name
    try:
        base.mkdir(mode=0o755)
        make("install", base)
        for directory in base.rglob("*"):
            if directory.is_dir():
                directory.chmod(0o755)
        shutil.copytree(EXAMPLES, base / "examples")
        saved = base / "saved"
        saved.mkdir(mode=0o700)
        shutil.chown(saved, "daemon", "daemon")
        conf = base / "etc/magicpig/magicpigd.conf"
        sample = conf.with_name("magicpigd.conf.sample").read_text()
        head, disk = sample.split("[disk]")
        conf.write_text(head + "[disk]" + disk.replace("#dir = ", f"dir = {saved}", 1))
        conf.chmod(0o644)
        environment = {
            **os.environ,
            "SBIN": str(base / "usr/sbin"),
            "BIN": str(base / "usr/bin"),
            "CONF": str(conf),
            "RUN": str(base / "run"),
            "EXAMPLES": str(base / "examples"),
            "DAEMON_USER": "daemon",
            "CLIENT_USER": "games",
            "INSTANCE": instance,
        }
        result = subprocess.run(
            [ROOT / "tests/packages/new-user"], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert result.stdout.endswith("  all is well\n")
    finally:
        shutil.rmtree(base, ignore_errors=True)
        shutil.rmtree(f"/dev/shm/magicpig-{instance}", ignore_errors=True)
