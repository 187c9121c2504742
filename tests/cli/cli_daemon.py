"""A private daemon for the command line tests, with its own directory, socket and pool, and magicpigctl to run on it."""

from __future__ import annotations

import os
import pathlib
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAGICPIGD = os.environ.get("MAGICPIGD", str(ROOT / "build/magicpigd"))
MAGICPIGCTL = os.environ.get("MAGICPIGCTL", str(ROOT / "build/magicpigctl"))
os.environ.setdefault("MAGICPIG_LIBRARY", str(ROOT / "build/libmagicpig.so.0"))
sys.path[:0] = [str(ROOT / "client-lib/python"), str(ROOT / "tools/common")]

from private_daemon import Freezable  # noqa: E402

CONFIG = """\
[daemon]
instance = {instance}
socket = {directory}/magicpigd.sock
log_level = debug
[pool]
dir = /dev/shm/{instance}
size = 64M
keep = no
[workers]
count = 2
[disk]
dir = {directory}/disk
"""


def open_terminal() -> tuple[int, int]:
    """A pseudo terminal's two ends; the test is skipped where there are none (a bare root without /dev/pts)."""
    try:
        return pty.openpty()
    except OSError as error:
        pytest.skip(f"no pseudo terminals here: {error}")


def good(result) -> str:
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def refused(result, code: int, text: str) -> None:
    assert (result.returncode, result.stdout) == (code, "")
    assert text in result.stderr, result.stderr


class Daemon(Freezable):
    def __init__(self) -> None:
        self.prepare()
        self.start()

    def prepare(self) -> None:
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="magicpig-cli-"))
        self.instance = self.directory.name
        self.socket = self.directory / "magicpigd.sock"
        self.pool = pathlib.Path("/dev/shm") / self.instance
        self.config = self.directory / "magicpigd.conf"
        self.config.write_text(CONFIG.format(instance=self.instance, directory=self.directory))
        self.log = open(self.directory / "log", "w+")

    def launch(self) -> None:
        self.process = subprocess.Popen(
            [MAGICPIGD, "--config", str(self.config)], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log
        )

    def start(self) -> None:
        """At first, and again after it was stopped by a test."""
        self.launch()
        try:
            self.wait_until_it_answers()
        except BaseException:
            self.process.kill()
            self.process.wait()
            self.remove()
            raise

    def wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + 20
        while self.ctl("ping", "-c", "1").returncode != 0:
            assert self.process.poll() is None, "magicpigd ended at once:\n" + self.log_text()
            assert time.monotonic() < deadline, "magicpigd does not answer:\n" + self.log_text()
            time.sleep(0.05)

    def log_text(self) -> str:
        return (self.directory / "log").read_text()

    def ctl(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        return ctl("--socket", str(self.socket), *arguments, **options)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(20)
            assert code == 0, f"magicpigd ended with {code}:\n" + self.log_text()
            assert not self.socket.exists() and not self.pool.exists()
        finally:
            self.process.kill()
            self.process.wait()
            self.remove()

    def remove(self) -> None:
        self.log.close()
        shutil.rmtree(self.pool, ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)


def ctl(*arguments: str, **options) -> subprocess.CompletedProcess:
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([MAGICPIGCTL, *arguments], capture_output=True, text=True, timeout=60, **options)
