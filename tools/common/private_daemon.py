"""A daemon of one's own in temporary directories: no root, no systemd, nothing left behind."""

from __future__ import annotations

import ctypes
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Callable

_PR_SET_PDEATHSIG = 1


def dies_with_parent(signal_number: int) -> Callable[[], None]:
    """A preexec function: the child gets this signal when its parent dies, and leaves Ctrl-C to the parent."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        libc.prctl(_PR_SET_PDEATHSIG, signal_number)

    return prepare


class Freezable:
    """Whoever has a `process`."""

    process: subprocess.Popen | None = None

    def freeze(self) -> None:
        """SIGSTOP, and all of its threads stand still."""
        self.process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(self.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)


class PrivateDaemon(Freezable):
    """Started by `with`; stopped, and its directories removed, at the end of the block however that ends."""

    def __init__(self, program: os.PathLike, pool_size: str = "1G", instance: str = "private", log_level: str = "info", cpus: str = ""):
        """cpus: a list such as 0-3,6 for its workers; empty: the daemon's own choice."""
        self.cpus = cpus
        self.program, self.pool_size, self.instance, self.log_level = program, pool_size, instance, log_level

    def __enter__(self) -> PrivateDaemon:
        self.home = pathlib.Path(tempfile.mkdtemp(prefix=f"magicpig-{self.instance}-"))
        try:
            shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
            self.pool = pathlib.Path(tempfile.mkdtemp(prefix=f"magicpig-{self.instance}-", dir=shm))
            self.socket, self.log = self.home / "magicpigd.sock", self.home / "magicpigd.log"
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process is not None and self.process.poll() is not None:
            print(f"magicpigd ended by itself with status {self.process.returncode}:\n{self.log_tail()}", file=sys.stderr)
        self.stop()

    def _start(self) -> None:
        config = self.home / "magicpigd.conf"
        config.write_text(
            f"[daemon]\ninstance = {self.instance}\nsocket = {self.socket}\nlog_level = {self.log_level}\n"
            f"[pool]\ndir = {self.pool}\nsize = {self.pool_size}\nkeep = no\n"
            f"[workers]\ncpus = {self.cpus}\n"
            f"[disk]\ndir = {self.home / 'disk'}\n"
        )
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [os.fspath(self.program), "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=dies_with_parent(signal.SIGTERM),
            )
        deadline = time.monotonic() + 30
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.program} did not start:\n{self.log_tail()}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        """The socket has a name a moment before it takes connections."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            return probe.connect_ex(os.fspath(self.socket)) == 0

    def kill_and_restart(self) -> float:
        """SIGKILL, and another daemon on the same pool; seconds until it serves."""
        self.process.kill()
        self.process.wait()
        self.socket.unlink(missing_ok=True)
        begin = time.monotonic()
        self._start()
        return time.monotonic() - begin

    def log_tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for directory in (getattr(self, "home", None), getattr(self, "pool", None)):
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)
