"""The daemon under a service manager: what it says on $NOTIFY_SOCKET, sockets that were passed on, the watchdog."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import socket
import subprocess
import time

import pytest
from cli_daemon import CONFIG, MAGICPIGD, ctl

PATIENCE = 20


class Manager:
    """Plays the service manager for one daemon."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.instance = f"service-{os.getpid()}-{directory.name}"
        self.socket = directory / "magicpigd.sock"
        self.config = directory / "magicpigd.conf"
        self.config.write_text(CONFIG.format(instance=self.instance, directory=directory))
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(directory / "notify"))
        self.notify.settimeout(PATIENCE)
        self.process: subprocess.Popen | None = None
        self.listening: socket.socket | None = None
        self.log = directory / "log"

    def listen(self, path: pathlib.Path | None = None, kind: int = socket.SOCK_SEQPACKET) -> None:
        self.listening = socket.socket(socket.AF_UNIX, kind)
        self.listening.bind(str(path or self.socket))
        self.listening.listen(16)

    def start(self, *arguments: str, **environment: str) -> None:
        settings = {"NOTIFY_SOCKET": str(self.directory / "notify"), **environment}
        command = [MAGICPIGD, "--config", str(self.config), *arguments]
        if self.listening:
            settings["LISTEN_FDS"] = "1"
            os.set_inheritable(self.listening.fileno(), True)
            # The number of the process that runs the daemon is known only to itself; descriptor 3 is the first that is passed.
            command = ["bash", "-c", f'exec 3<&{self.listening.fileno()}; LISTEN_PID=$$ exec "$@"', "bash", *command]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, close_fds=False, env={**os.environ, **settings}
            )

    def hear(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.notify.recv(4096).decode().splitlines())

    def hear_until(self, key: str) -> list[dict[str, str]]:
        heard = [self.hear()]
        while key not in heard[-1]:
            heard.append(self.hear())
        return heard

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.listening:
            self.listening.close()
        self.notify.close()
        subprocess.run(["rm", "-rf", f"/dev/shm/{self.instance}"], check=True)


@pytest.fixture
def manager(tmp_path):
    manager = Manager(tmp_path)
    yield manager
    manager.close()


def keys(heard: list[dict[str, str]]) -> list[str]:
    return [key for message in heard for key in message]


def test_ready_after_the_pool_and_stopping_at_the_end(manager):
    manager.start()
    heard = manager.hear_until("READY")
    assert heard[0] == {"STATUS": "Attaching the pool"}
    assert re.fullmatch(r"Serving 0 contexts to 0 clients, \d+ % of 64 MiB in use", heard[-2]["STATUS"])
    assert ctl("--socket", str(manager.socket), "ping", "-c", "1").returncode == 0  # at once: ready means ready
    assert manager.stop() == 0
    assert "STOPPING" in keys(manager.hear_until("STOPPING"))


def test_not_ready_if_it_cannot_start(manager):
    manager.start("--pool.dir=/proc/nowhere")
    assert manager.process.wait(PATIENCE) == 1
    manager.notify.settimeout(0.2)
    with pytest.raises(TimeoutError):
        while True:
            assert "READY" not in manager.hear()


def test_the_status_says_how_many_contexts_are_served(manager):
    magicpig = pytest.importorskip("magicpig")
    manager.start()
    manager.hear_until("READY")
    with magicpig.Client(str(manager.socket)) as client:
        client.create("one", magicpig.Spec([magicpig.Layer(query_heads=1, kv_heads=1, d_k=64)], fingerprint=b"x")).close()
        while not manager.hear().get("STATUS", "").startswith("Serving 1 contexts to 1 clients"):
            pass
    assert manager.stop() == 0


@pytest.mark.parametrize("good", [True, False], ids=["good", "wrong"])
def test_a_reload_is_announced_and_ends(manager, good):
    manager.start()
    manager.hear_until("READY")
    if not good:
        manager.config.write_text("[daemon]\nlog_level = loud\n")
    manager.process.send_signal(signal.SIGHUP)
    begun = manager.hear_until("RELOADING")[-1]
    assert begun["RELOADING"] == "1" and 0 < int(begun["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert manager.hear_until("READY")[-1]["READY"] == "1"
    assert ("configuration unchanged" in manager.log.read_text()) == (not good)


def test_the_watchdog_is_fed_while_workers_sleep(manager):
    manager.start(WATCHDOG_USEC="400000")
    manager.hear_until("READY")
    for _ in range(5):
        manager.hear_until("WATCHDOG")
    assert manager.stop() == 0


def test_a_watchdog_of_another_process_is_not_fed(manager):
    manager.start(WATCHDOG_USEC="100000", WATCHDOG_PID="1")
    manager.hear_until("READY")
    manager.notify.settimeout(1)
    with pytest.raises(TimeoutError):
        while True:
            assert "WATCHDOG" not in manager.hear()


def test_a_socket_that_was_passed_on(manager):
    """It is used, and outlives the daemon: who connects meanwhile waits for the next one."""
    manager.listen()
    inode = manager.socket.stat().st_ino
    early = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    early.connect(str(manager.socket))  # before there is a daemon
    manager.start()
    manager.hear_until("READY")
    assert ctl("--socket", str(manager.socket), "ping", "-c", "1").returncode == 0
    early.close()
    assert manager.stop() == 0
    assert manager.socket.stat().st_ino == inode
    waiting = subprocess.Popen(
        [os.environ.get("MAGICPIGCTL", "build/magicpigctl"), "--socket", str(manager.socket), "ping", "-c", "1"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    manager.start()
    assert waiting.wait(PATIENCE) == 0
    assert manager.stop() == 0


def test_its_permissions_are_the_managers(manager):
    manager.listen()
    os.chmod(manager.socket, 0o600)
    manager.start("--daemon.socket_mode=0666")
    manager.hear_until("READY")
    assert manager.socket.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("what", ["another path", "a stream", "a file"])
def test_a_wrong_socket_is_refused(manager, what):
    if what == "a file":
        manager.listening = open(manager.directory / "file", "w")
    elif what == "a stream":
        manager.listen(kind=socket.SOCK_STREAM)
    else:
        manager.listen(manager.directory / "other.sock")
    manager.start()
    assert manager.process.wait(PATIENCE) == 1
    log = manager.log.read_text()
    assert ("daemon.socket" in log if what == "another path" else "ListenSequentialPacket=" in log), log


def test_a_second_daemon_on_a_passed_socket_is_refused(manager):
    manager.listen()
    manager.start()
    manager.hear_until("READY")
    first = manager.process
    manager.start()
    assert manager.process.wait(PATIENCE) == 1
    assert f"pid {first.pid}" in manager.log.read_text()
    manager.process = first
    assert manager.stop() == 0


def test_saving_at_the_end_asks_for_time(manager):
    """A save that takes longer than a second, because the disk is slow (disk.rate)."""
    magicpig = pytest.importorskip("magicpig")
    import numpy

    manager.start("--disk.persist=shutdown", "--disk.rate=4M")
    manager.hear_until("READY")
    spec = magicpig.Spec([magicpig.Layer(query_heads=2, kv_heads=2, d_k=64)], fingerprint=b"x")
    with magicpig.Client(str(manager.socket)) as client, client.queue() as queue:
        with client.create("long", spec) as context:
            rows = numpy.random.default_rng(0).standard_normal((20000, 2, 64), dtype=numpy.float32)
            queue.append(context, 0, 0, rows, rows)
            queue.commit(context, 0, numpy.arange(20000, dtype=numpy.uint32), seal=True)
    manager.process.send_signal(signal.SIGTERM)
    heard = manager.hear_until("STOPPING")
    while "EXTEND_TIMEOUT_USEC" not in heard[-1]:
        heard.append(manager.hear())
    assert int(heard[-1]["EXTEND_TIMEOUT_USEC"]) == 120_000_000
    assert any(message.get("STATUS", "").startswith("Saving contexts to") for message in heard)
    assert manager.process.wait(60) == 0
