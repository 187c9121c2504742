"""magicpigctl top: driven in a terminal (tmux) and read off its screen; --batch; a daemon that is stuck, ends, and comes back."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time

import pytest
from cli_daemon import MAGICPIGCTL, Daemon, ctl, open_terminal

OK, FAILED, USAGE, NO_DAEMON = range(4)
needs_tmux = pytest.mark.skipif(not shutil.which("tmux"), reason="needs tmux")


class Screen:
    """magicpigctl top in a tmux of its own."""

    def __init__(self, directory, *arguments: str, columns: int = 120, lines: int = 40, environment: dict[str, str] | None = None):
        for end in open_terminal():
            os.close(end)
        self.tmux = ["tmux", "-S", str(directory / "tmux"), "-f", "/dev/null"]
        self.status = directory / "status"
        cache = directory / "cache"
        words = {"LC_ALL": "C.UTF-8", "XDG_CACHE_HOME": str(cache), **(environment or {})}
        command = " ".join(["env", *(f"'{k}={v}'" for k, v in words.items()), f"'{MAGICPIGCTL}'", *(f"'{a}'" for a in arguments)])
        self._tmux("new-session", "-d", "-x", str(columns), "-y", str(lines), f"{command}; echo $? > {self.status}; sleep 60")

    def _tmux(self, *arguments: str) -> str:
        result = subprocess.run([*self.tmux, *arguments], capture_output=True, text=True, timeout=20)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def text(self, *options: str) -> str:
        return self._tmux("capture-pane", "-p", *options)

    def keys(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    def resize(self, columns: int, lines: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def until(self, pattern: str, absent: bool = False) -> str:
        deadline = time.monotonic() + 30
        while True:
            text = self.text()
            if bool(re.search(pattern, text, re.M)) != absent:
                return text
            assert time.monotonic() < deadline, f"no {pattern!r} on:\n{text}"
            time.sleep(0.05)

    def exit_status(self) -> int:
        deadline = time.monotonic() + 20
        while not self.status.exists() or not self.status.read_text():
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.05)
        return int(self.status.read_text())

    def close(self) -> None:
        subprocess.run([*self.tmux, "kill-server"], capture_output=True, timeout=20)


@pytest.fixture
def screen(daemon, tmp_path):
    screen = Screen(tmp_path, "--socket", str(daemon.socket), "top", "--delay", "200")
    yield screen
    screen.close()


class Load:
    """Attends to a context in a thread until the block ends."""

    def __init__(self, client, context):
        self.client, self.context, self.stop, self.done = client, context, threading.Event(), 0

    def run(self):
        import numpy

        q = numpy.ones((6, 64), dtype=numpy.float32)
        with self.client.queue() as queue:
            while not self.stop.is_set():
                queue.attend(self.context, 0, q, proposal="dense")
                self.done += 1
                time.sleep(0.002)

    def __enter__(self):
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def until_it_runs(self):
        deadline = time.monotonic() + 20
        while self.done < 10:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def rows_of(text: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    lines = text.splitlines()
    (start,) = [i for i, line in enumerate(lines) if re.match(heading.rstrip(), line.lstrip())]
    rows = []
    for line in lines[start + 1 :]:
        cells = re.split(r"  +", line.strip())
        if len(cells) < 3 or cells[0] in ("client", "context"):
            break
        rows.append(cells)
    return rows


# ---- the screen -------------------------------------------------------------------------------------------------------


@needs_tmux
def test_what_it_shows(daemon, client, book, screen):
    with Load(client, book):
        text = screen.until(r"^attend +[1-9]")
        assert text.splitlines()[0].startswith(f"magicpigd 0.1.0  {daemon.instance}  pid {daemon.process.pid}  up ")
        assert re.search(r"\d\d:\d\d:\d\d  every 0.2 s$", text.splitlines()[0])
        assert re.search(r"^pool  \[#[#.]{23}\] [\d.]+ %: [\d.]+ MiB of 64.0 MiB  contexts 1, clients \d, queues \d, on disk 0 \(0 B\)$", text, re.M)
        assert re.search(r"^read  \[[#.]{24}\] [\d.]+ [KM]iB/s of [\d.]+ [KM]iB/s at most so far", text, re.M)
        screen.until(r"^book +\d+ +[1-9]")
        text = screen.until(r"^ +[1-9]\d*(\.\d+)?( k)? requests/s, [1-9][\d.]*( k| M)? rows read/s, 0 rows appended/s$")
        (attend,) = [row for row in rows_of(text, "operation +/s +p50 +p90 +p99 +p99.9") if row[0] == "attend"]
        assert all(re.fullmatch(r"[\d.]+ (ns|us|ms)", time_) for time_ in attend[2:6])
        workers = rows_of(text, "worker  cpu")
        assert [row[0] for row in workers] == ["0", "1"]
        assert all(re.fullmatch(r"\[#*\+*\.*\]", row[2]) and len(row[2]) == 26 for row in workers)
        ((name, number, *rates),) = rows_of(text, "context ")
        assert name == "book" and number == str(book.info().id) and float(rates[0].split()[0]) > 0
        ((command, pid, *_),) = [row for row in rows_of(text, "client ") if row[2] != "0"]
        assert pid == str(os.getpid()) and command == open("/proc/self/comm").read().strip()
    screen.until(r"^ +0 requests/s")
    screen.keys("q")
    assert screen.exit_status() == OK
    assert screen.text().strip() == ""  # the terminal is as it was


@needs_tmux
def test_keys(daemon, client, book, screen):
    with Load(client, book):
        screen.until("requests/s[*]")
        for column in (r"rows/s[*]", r"read/s[*]", r"context[*]", r"requests/s[*]"):
            screen.keys("s")
            screen.until(column)
        for key, heading in (("o", "^operation "), ("w", "worker +cpu"), ("c", "^context "), ("l", "^client ")):
            screen.keys(key)
            screen.until(heading, absent=True)
            screen.keys(key)
            screen.until(heading)
        screen.keys("+")
        screen.until("every 0.5 s$")
        screen.keys("-", "-")
        screen.until("every 0.1 s$")
        screen.keys("-")
        screen.keys("p")
        held = screen.until("HELD")
        time.sleep(0.5)
        assert screen.text() == held
        screen.keys("p")
        screen.until("HELD", absent=True)
        screen.keys("h")
        text = screen.until("hide and show operations, workers, contexts, clients")
        assert "book" not in text
        screen.keys("x")
        screen.until("^book ")
    screen.keys("C-c")
    assert screen.exit_status() == OK


@needs_tmux
def test_sizes(client, book, screen):
    """Nothing is ever longer than the screen, and what matters most stays."""
    with Load(client, book):
        screen.until(r"^book +\d+ +[1-9]")
        for columns, lines in ((80, 24), (60, 14), (40, 10), (20, 4), (10, 2), (3, 1), (200, 60)):
            screen.resize(columns, lines)
            time.sleep(0.3)
            text = screen.until("^mag")
            assert len(text.splitlines()) <= lines
            assert all(len(line) <= columns for line in text.splitlines())
            if lines >= 4:
                screen.until("^read ")
            if lines >= 10 and columns >= 40:
                screen.until("^book ")
        text = screen.until(r"^book .* root *$" if os.getuid() == 0 else "^book ")
        assert "errors/s" in text
    screen.keys("q")
    assert screen.exit_status() == OK


@needs_tmux
def test_colours_and_none(daemon, client, book, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir(), (tmp_path / "c").mkdir()
    arguments = ("--socket", str(daemon.socket), "top", "--delay", "200")
    cases = {"a": {}, "b": {"NO_COLOR": "1"}, "c": {"TERM": "vt100"}}
    screens = {name: Screen(tmp_path / name, *arguments, environment=environment) for name, environment in cases.items()}
    try:
        for name, screen in screens.items():
            screen.until("^pool .*#")
            assert bool(re.search(r"\x1b\[(?:\d+;)*3[123]", screen.text("-e"))) == (name == "a")
    finally:
        for screen in screens.values():
            screen.close()


@needs_tmux
def test_a_measured_limit(daemon, tmp_path):
    cache = tmp_path / "cache/magicpig"
    cache.mkdir(parents=True)
    host = os.uname().nodename
    (cache / f"limit-{host}").write_text(
        f"magicpig limit 1\nhost {host}\nstream_bytes_per_s 10737418240\ngather_bytes_per_s 5e9\nthreads 2\nrow_bytes 512\nmeasured_ns 1\n"
    )
    screen = Screen(tmp_path, "--socket", str(daemon.socket), "top")
    try:
        screen.until(r"^read .* of 10.0 GiB/s that memory gives$")
    finally:
        screen.close()


@needs_tmux
def test_a_daemon_that_is_stuck(daemon, client, book, tmp_path):
    screen = None
    with Load(client, book):
        time.sleep(0.1)
        daemon.freeze()
        try:  # it begins while the daemon is stuck already
            screen = Screen(tmp_path, "--socket", str(daemon.socket), "top", "--delay", "200")
            text = screen.until(rf"^NOT ANSWERING: pid {daemon.process.pid} has not been seen alive for \d+ s$")
            assert re.search(r"^pool .* contexts 1, clients \d", text, re.M)
            assert re.search(r"^#\d+ ", text, re.M)  # nobody tells its name
            screen.resize(100, 20)
            screen.keys("s")
            screen.until("rows/s[*]")
            daemon.thaw()
            screen.until("NOT ANSWERING", absent=True)
            screen.until(r"^book +\d+ +[1-9]")  # and now somebody does
            screen.keys("q")
            assert screen.exit_status() == OK
        finally:
            daemon.thaw()
            if screen:
                screen.close()


@needs_tmux
def test_the_daemon_ends_and_another_begins(tmp_path):
    with contextlib.ExitStack() as ending:
        daemon = Daemon()
        ending.callback(daemon.stop)
        screen = Screen(tmp_path, "--socket", str(daemon.socket), "top", "--delay", "200")  # skips where there are no terminals
        ending.callback(screen.close)
        screen.until(f"pid {daemon.process.pid}")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.wait(20)
        screen.until("^no daemon: No such file or directory")
        daemon.start()
        screen.until(f"pid {daemon.process.pid}")
        screen.until("requests/s")
        screen.keys("q")
        assert screen.exit_status() == OK


@needs_tmux
def test_the_terminal_goes_away(daemon):
    """Without a signal: it is not the controlling terminal."""
    master, slave = open_terminal()
    command = [MAGICPIGCTL, "--socket", str(daemon.socket), "top"]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm"}) as top:
        os.close(slave)
        while b"magicpigd" not in os.read(master, 65536):
            pass
        os.close(master)
        assert top.wait(timeout=30) == OK


def test_an_unknown_terminal(daemon, tmp_path):
    screen = Screen(tmp_path, "--socket", str(daemon.socket), "top", environment={"TERM": "abacus"})
    try:
        screen.until("the terminal type 'abacus' is not known: set TERM, or use --batch")
        assert screen.exit_status() == FAILED
    finally:
        screen.close()


# ---- without a screen -------------------------------------------------------------------------------------------------


def test_batch(daemon, client, book):
    with Load(client, book) as load:
        load.until_it_runs()
        result = daemon.ctl("top", "--batch", "--delay", "200", "-n", "5")
    assert result.returncode == OK and result.stderr == ""
    title, *lines = result.stdout.splitlines()
    assert title.split() == "time requests/s rows/s read/s p50 p99 busy pool contexts clients errors/s".split()
    assert len(lines) == 5
    busy = r"[1-9][\d.]*( k)? +[\d.]+( [kM])? +[\d.]+ \w+ +[\d.]+ [num]s +[\d.]+ [num]s"
    idle = r"0 +0 +0 B +- +-"  # of a stretch in which the machine did something else
    for line in lines:
        assert re.match(rf"\d\d:\d\d:\d\d +({busy}|{idle}) +[\d.]+ % +[\d.]+ % +1 +\d +0$", line)
    assert any(re.match(rf"\S+ +{busy}", line) for line in lines)


def test_batch_json(daemon, client, book):
    with Load(client, book) as load:
        load.until_it_runs()
        before, then = load.done, time.monotonic()
        seen = json.loads(daemon.ctl("top", "--json", "-n", "1").stdout)
        rate = (load.done - before) / (time.monotonic() - then)
    assert seen["pid"] == daemon.process.pid and seen["healthy"] is True
    assert 0.2 * rate < seen["requests_per_s"] < 5 * rate
    (context,), clients = seen["contexts"], seen["clients"]
    (mine,) = [c for c in clients if c["requests_per_s"]]
    assert context["name"] == "book" and mine["pid"] == os.getpid()
    assert context["requests_per_s"] == mine["requests_per_s"] == seen["requests_per_s"]
    assert context["rows_read_per_s"] == pytest.approx(300 * 2 * context["attends_per_s"])  # dense: all rows of two KV heads
    (attend,) = [o for o in seen["operations"] if o["name"] == "attend"]
    assert 0 < attend["p50_us"] <= attend["p90_us"] <= attend["p99_us"] <= attend["p999_us"]
    assert all(w["busy"] + w["spin"] + w["park"] == pytest.approx(1) for w in seen["workers"])
    assert sum(w["busy"] for w in seen["workers"]) == pytest.approx(context["service_share"], rel=0.8)  # one request at a time
    assert seen["limit_bytes_per_s"] is None or seen["limit_bytes_per_s"] > 0


def test_wrong_usage(daemon):
    for arguments in (["extra"], ["-n", "3"], ["--delay", "10"], ["-n", "0", "-b"], []):  # the last: no terminal
        result = daemon.ctl("top", *arguments)
        assert result.returncode == USAGE and result.stdout == ""
    assert "use --batch" in daemon.ctl("top").stderr


def test_no_daemon(tmp_path):
    result = ctl("--socket", str(tmp_path / "none.sock"), "top", "-b")
    assert result.returncode == NO_DAEMON and "start magicpigd" in result.stderr
    result = ctl("top", "-b", "-n", "1", "--stats", str(tmp_path / "x.stats"))
    assert result.returncode == OK and "no daemon: No such file or directory" in result.stdout
