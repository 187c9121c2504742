"""magicpigd's own command line and signals."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import time

import pytest
from cli_daemon import MAGICPIGD, ROOT, Daemon

USAGE = 2


def magicpigd(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([MAGICPIGD, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


@pytest.fixture
def own_daemon():
    """One whose configuration and end belong to the test."""
    daemon = Daemon()
    yield daemon
    daemon.process.kill()
    daemon.process.wait()
    daemon.remove()


@pytest.fixture
def starting():
    """A daemon that waits for its configuration, which is a pipe, and the end to write it into."""
    daemon = Daemon.__new__(Daemon)
    daemon.prepare()
    text = daemon.config.read_text()
    daemon.config.unlink()
    os.mkfifo(daemon.config)
    daemon.launch()
    yield daemon, text
    daemon.process.kill()
    daemon.process.wait()
    daemon.remove()


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def options_of_sample() -> list[str]:
    section, names = "", []
    for line in (ROOT / "config/magicpigd.conf").read_text().splitlines():
        if found := re.fullmatch(r"\[(\w+)\]", line):
            section = found[1]
        elif found := re.match(r"#?(\w+) = ", line):
            names.append(f"{section}.{found[1]}")
    return names


def test_help_names_every_option():
    result = magicpigd("--help")
    assert result.returncode == 0 and result.stderr == ""
    missing = [name for name in options_of_sample() if name not in result.stdout]
    assert options_of_sample() and not missing


def test_version():
    assert re.fullmatch(r"magicpigd \d+\.\d+\.\d+\n", magicpigd("--version").stdout)


def test_print_config_is_the_sample():
    assert magicpigd("--print-config").stdout == (ROOT / "config/magicpigd.conf").read_text()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--fly"], ["--fly", "--help"]),
        (["extra"], ["extra"]),
        (["--config"], ["--config"]),
        (["--pool.size"], ["--pool.size"]),
        (["--pool.colour=red"], ["colour", "pool", "huge_pages"]),
        (["--pool.size=red"], ["pool.size", "red"]),
        (["--config", "/nonexistent/file"], ["/nonexistent/file"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_wrong_arguments_are_refused(arguments, words):
    result = magicpigd(*arguments)
    assert result.returncode == USAGE and result.stdout == ""
    assert all(word in result.stderr for word in words), result.stderr


def test_a_wrong_file_is_refused_with_its_line(tmp_path: pathlib.Path):
    config = tmp_path / "c.conf"
    config.write_text("[pool]\nsize = 64M\n\n[workers]\ncount = many\n")
    result = magicpigd("--config", str(config))
    assert result.returncode == USAGE
    assert f"{config}:5" in result.stderr and "workers.count" in result.stderr and "many" in result.stderr


def test_arguments_win_over_the_file(own_daemon):
    own_daemon.process.terminate()
    assert own_daemon.process.wait(20) == 0
    again = subprocess.Popen(
        [MAGICPIGD, "--config", str(own_daemon.config), "--workers.count=1", "--set", "daemon.log_level=warn"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: own_daemon.ctl("ping", "-c", "1").returncode == 0, "no answer")
        assert own_daemon.ctl("config", "get", "workers.count").stdout == "1\n"
        assert own_daemon.ctl("config", "get", "daemon.log_level").stdout == "warn\n"
    finally:
        again.terminate()
        assert again.wait(20) == 0


def test_sighup_reads_the_file_again(own_daemon):
    text = own_daemon.config.read_text()
    own_daemon.config.write_text(text.replace("log_level = debug", "log_level = error").replace("count = 2", "count = 1"))
    own_daemon.process.send_signal(signal.SIGHUP)
    wait_for(lambda: own_daemon.ctl("config", "get", "daemon.log_level").stdout == "error\n", "the level did not change")
    assert own_daemon.ctl("config", "get", "workers.count").stdout == "2\n"  # needs a restart


def test_sighup_with_a_wrong_file_changes_nothing(own_daemon):
    own_daemon.config.write_text("[daemon]\nlog_level = loud\n")
    own_daemon.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "configuration unchanged" in own_daemon.log_text(), "no message")
    assert "loud" in own_daemon.log_text()
    assert own_daemon.ctl("config", "get", "daemon.log_level").stdout == "debug\n"


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_a_second_signal_stops_at_once(own_daemon, first):
    own_daemon.process.send_signal(first)
    own_daemon.process.send_signal(signal.SIGTERM)
    assert own_daemon.process.wait(20) == 0
    assert not own_daemon.socket.exists() and not own_daemon.pool.exists()


def test_a_second_daemon_is_refused(own_daemon):
    result = magicpigd("--config", str(own_daemon.config))
    assert result.returncode == 1
    assert str(own_daemon.socket) in result.stderr and str(own_daemon.process.pid) in result.stderr
    assert own_daemon.ctl("ping", "-c", "1").returncode == 0


def test_a_socket_that_a_crash_left_is_replaced(own_daemon):
    own_daemon.process.kill()
    own_daemon.process.wait()
    assert own_daemon.socket.exists()
    again = subprocess.Popen([MAGICPIGD, "--config", str(own_daemon.config)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: own_daemon.ctl("ping", "-c", "1").returncode == 0, "no answer")
    finally:
        again.terminate()
        assert again.wait(20) == 0


def test_ls_of_more_contexts_than_one_message_holds(own_daemon):
    magicpig = pytest.importorskip("magicpig")
    spec = magicpig.Spec([magicpig.Layer(query_heads=1, kv_heads=1, d_k=64)], fingerprint=b"many")
    names = [f"context-{i:03}" for i in range(150)]
    with magicpig.Client(str(own_daemon.socket)) as client:
        for name in names:
            client.create(name, spec).close()
        assert sorted(context["name"] for context in json.loads(own_daemon.ctl("ls", "--json").stdout)) == names


def test_free_memory_is_made_ready(own_daemon):
    def there() -> int:
        return sum(file.stat().st_blocks * 512 for file in own_daemon.pool.glob("*.pool"))

    before = there()
    assert before < 8 << 20  # none is asked for
    own_daemon.process.send_signal(signal.SIGTERM)
    assert own_daemon.process.wait(20) == 0
    own_daemon.config.write_text(own_daemon.config.read_text().replace("size = 64M", "size = 64M\nready = 16M"))
    own_daemon.start()
    wait_for(lambda: there() >= before + (16 << 20), "an idle daemon makes 16 MiB ready")
    time.sleep(0.2)
    assert there() <= before + (18 << 20)
    status = json.loads(own_daemon.ctl("status", "--json").stdout)
    assert status["pool_used"] < 1 << 20


def test_a_reload_while_it_starts(starting):
    daemon, text = starting
    with open(daemon.config, "w") as config:  # open at both ends now
        daemon.process.send_signal(signal.SIGHUP)
        config.write(text)
    wait_for(lambda: " ready: " in daemon.log_text(), "it does not start")
    with open(daemon.config, "w") as config:  # then it is read again
        config.write(text.replace("log_level = debug", "log_level = info"))
    daemon.wait_until_it_answers()
    wait_for(lambda: "SIGHUP: daemon.log_level = info (was debug)" in daemon.log_text(), "no reload")
