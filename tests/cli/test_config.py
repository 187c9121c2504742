"""magicpigctl config set, test, diff, and reload: what they print, to the letter, and what the daemon does about it."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import time

import pytest
from cli_daemon import MAGICPIGCTL, Daemon, ctl, good

OK, FAILED, USAGE, NO_DAEMON, NOT_FOUND, PERMISSION = range(6)


@pytest.fixture
def daemon():
    daemon = Daemon()
    yield daemon
    daemon.stop()


def value(daemon, key: str) -> str:
    return good(daemon.ctl("config", "get", key)).strip()


def edit(daemon, old: str, new: str) -> None:
    text = daemon.config.read_text()
    assert old in text
    daemon.config.write_text(text.replace(old, new))


# ---- set ---------------------------------------------------------------------------------------------------------------
def test_set(daemon):
    assert good(daemon.ctl("config", "set", "limits.bytes_per_uid=16M")) == "limits.bytes_per_uid = 16M (was 0)\n"
    assert value(daemon, "limits.bytes_per_uid") == "16M"
    assert good(daemon.ctl("config", "set", "limits.bytes_per_uid", "16384K")) == "nothing has changed\n"
    changed = json.loads(good(daemon.ctl("config", "set", "daemon.log_level=warn", "--json")))
    assert changed == {"changed": ["daemon.log_level = warn (was debug)"], "needs_restart": []}
    # A reload goes back to the file.
    assert good(daemon.ctl("reload")) == (
        "daemon.log_level = debug (was warn)\nlimits.bytes_per_uid = 0 (was 16M)\n"
    )


@pytest.mark.parametrize(
    "assignment, text",
    [
        ("pool.colour=red", "unknown key 'colour' in [pool]; allowed: dir, size, lock_memory"),
        ("fruit.size=1", "unknown section [fruit] (key 'size'); allowed: daemon, pool, workers, engine, limits, disk"),
        ("limits.queues_per_uid=0", "limits.queues_per_uid = 0: allowed: whole number, 1 to 1024"),
        ("limits.bytes_per_uid=5Q", "limits.bytes_per_uid = 5Q: allowed: size in bytes or with K, M, G, T, 0 to 1024T"),
        ("disk.idle=5 weeks", "disk.idle = 5 weeks: allowed: duration with us, ms or s, 0us to 100000s"),
        ("disk.evict_low=1", None),
        ("disk.evict_high=0.5", "disk.evict_low = 0.8 is above disk.evict_high = 0.5; lower the one or raise the other"),
        ("daemon.admin_group=no-such-group", "daemon.admin_group = no-such-group: no such group; make it (groupadd)"),
    ],
)
def test_what_cannot_be_set_is_explained(daemon, assignment, text):
    before = good(daemon.ctl("config"))
    result = daemon.ctl("config", "set", assignment)
    if text is None:
        assert result.returncode == OK
        return
    assert result.returncode == FAILED and result.stdout == ""
    assert result.stderr.startswith("magicpigctl config: ") and text in result.stderr
    assert good(daemon.ctl("config")) == before


def test_what_needs_a_restart_is_refused(daemon):
    result = daemon.ctl("config", "set", "pool.size=128M")
    assert result.returncode == FAILED
    assert result.stderr == (
        "magicpigctl config: pool.size cannot change while the daemon runs: "
        f"put it into {daemon.config} and restart the daemon\n"
    )
    assert value(daemon, "pool.size") == "64M"


# ---- reload ------------------------------------------------------------------------------------------------------------
def test_reload_says_what_changed_and_what_cannot(daemon):
    edit(daemon, "count = 2", "count = 1\nspin_us = 1ms")
    assert good(daemon.ctl("reload")) == "needs a restart: workers.count = 1 (was 2)\nworkers.spin_us = 1ms (was 200us)\n"
    assert value(daemon, "workers.count") == "2" and value(daemon, "workers.spin_us") == "1ms"
    seen = json.loads(good(daemon.ctl("reload", "--json")))
    assert seen == {"changed": [], "needs_restart": ["workers.count = 1 (was 2)"]}


def test_reload_of_a_wrong_file_changes_nothing(daemon):
    edit(daemon, "log_level = debug", "log_level = loud")
    result = daemon.ctl("reload")
    assert result.returncode == FAILED and result.stdout == ""
    assert result.stderr == (
        f"magicpigctl reload: {daemon.config}:4: daemon.log_level = loud: allowed: error, warn, info or debug\n"
    )
    assert value(daemon, "daemon.log_level") == "debug"
    assert good(daemon.ctl("ping", "-c", "1"))
    edit(daemon, "log_level = loud", "log_level = debug")


def test_reload_changes_the_disks_policy(daemon):
    """A context that was not saved unasked is, once the policy says so."""
    magicpig = pytest.importorskip("magicpig")
    import numpy

    spec = magicpig.Spec([magicpig.Layer(query_heads=1, kv_heads=1, d_k=64)], fingerprint=b"x")
    with magicpig.Client(str(daemon.socket)) as client, client.queue() as queue:
        with client.create("kept", spec) as context:
            rows = numpy.zeros((100, 1, 64), dtype=numpy.float32)
            queue.append(context, 0, 0, rows, rows)
            queue.commit(context, 0, numpy.arange(100, dtype=numpy.uint32))
        assert list(client.saved()) == []
        edit(daemon, f"dir = {daemon.directory}/disk", f"dir = {daemon.directory}/disk\npersist = commit")
        assert client.configure("limits.contexts_per_uid", "9") == ["limits.contexts_per_uid = 9 (was 0)"]
        assert client.reload() == ["limits.contexts_per_uid = 0 (was 9)", "disk.persist = commit (was none)"]
        deadline = time.monotonic() + 30
        while not list(client.saved()):
            assert time.monotonic() < deadline, "the context was not saved"
            time.sleep(0.05)
        assert [str(saved.name) for saved in client.saved()] == ["kept"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("arguments", [["reload"], ["config", "set", "limits.bytes_per_uid=0"]], ids=" ".join)
def test_only_administrators_may(daemon, tmp_path, arguments):
    program = shutil.copy(MAGICPIGCTL, "/tmp/magicpigctl-admin-test")
    try:
        os.chmod(daemon.directory, 0o755)
        os.chmod(daemon.socket, 0o666)
        result = subprocess.run(
            [program, "--socket", daemon.socket, *arguments],
            user=65534, group=65534, extra_groups=[], cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )
    finally:
        os.unlink(program)
    assert result.returncode == PERMISSION and result.stdout == ""
    assert "only root, the daemon's user and members of daemon.admin_group may do this; uid 65534 may not" in result.stderr


# ---- test --------------------------------------------------------------------------------------------------------------
def test_test_names_every_error_with_its_line(tmp_path: pathlib.Path):
    file = tmp_path / "bad.conf"
    file.write_text(
        "[pool]\nsize = 12Q\ncolour = red\n[fruit]\na = b\n[limits]\nclients_per_uid = 0\n"
        "[disk]\nevict_high = .5\n# a comment\n  idle = 3 days\n"
    )
    result = ctl("config", "test", str(file))
    assert result.returncode == FAILED and result.stdout == ""
    assert result.stderr.splitlines() == [
        f"{file}:2: pool.size = 12Q: allowed: size in bytes or with K, M, G, T, 0 to 1024T",
        f"{file}:3: unknown key 'colour' in [pool]; allowed: dir, size, lock_memory, huge_pages, ready, restart, keep, verify",
        f"{file}:5: unknown section [fruit] (key 'a'); allowed: daemon, pool, workers, engine, limits, disk",
        f"{file}:7: limits.clients_per_uid = 0: allowed: whole number, 1 to 1024",
        f"{file}:11: disk.idle = 3 days: allowed: duration with us, ms or s, 0us to 100000s",
        f"{file}: disk.evict_low = 0.8 is above disk.evict_high = 0.5; lower the one or raise the other",
    ]
    seen = ctl("config", "test", "--json", str(file))
    assert seen.returncode == FAILED
    assert json.loads(seen.stdout) == {"file": str(file), "errors": result.stderr.splitlines()}


def test_test_of_a_good_file(daemon):
    assert good(ctl("config", "test", str(daemon.config))) == f"{daemon.config}: good\n"
    assert good(daemon.ctl("config", "test")) == f"{daemon.config}: good\n"  # the daemon's own
    assert json.loads(good(ctl("config", "test", "--json", str(daemon.config))))["errors"] == []


def test_test_of_lines_that_are_none(tmp_path: pathlib.Path):
    file = tmp_path / "odd.conf"
    file.write_text("[pool]\nsize\n")
    result = ctl("config", "test", str(file))
    assert (result.returncode, result.stderr) == (FAILED, f"{file}:2: neither [section] nor key = value\n")
    file.write_text("[pool]\nsize = " + "1" * 2000 + "\n")
    result = ctl("config", "test", str(file))
    assert result.returncode == FAILED and f"{file}:2: line longer than" in result.stderr


def test_test_of_a_file_that_is_not_there(tmp_path: pathlib.Path):
    result = ctl("config", "test", str(tmp_path / "none"))
    assert result.returncode == FAILED
    assert result.stderr == f"{tmp_path / 'none'}: cannot open the configuration: No such file or directory\n"


# ---- diff --------------------------------------------------------------------------------------------------------------
def test_diff(daemon, tmp_path: pathlib.Path):
    assert good(daemon.ctl("config", "diff")) == f"what is in force is what {daemon.config} says\n"
    edit(daemon, "count = 2", "count = 1\n[limits]\nbytes_per_uid = 1G")
    assert good(daemon.ctl("config", "diff")) == (
        "workers.count = 1 (in force: 2), needs a restart\nlimits.bytes_per_uid = 1G (in force: 0)\n"
    )
    assert json.loads(good(daemon.ctl("config", "diff", "--json"))) == [
        {"option": "workers.count", "file": "1", "in_force": "2", "live": False},
        {"option": "limits.bytes_per_uid", "file": "1G", "in_force": "0", "live": True},
    ]
    assert daemon.ctl("config", "set", "limits user 65000.bytes=3M").returncode == OK
    edit(daemon, "bytes_per_uid = 1G", "bytes_per_uid = 0\n[limits group 65001]\nrequests = 5")
    assert good(daemon.ctl("config", "diff")).splitlines()[1:] == [
        "limits group 65001.requests = 5 (in force: not set)",
        "limits user 65000.bytes = not set (in force: 3M)",
    ]
    other = tmp_path / "other.conf"
    other.write_text("[daemon]\nlog_level = warn\n")
    lines = good(daemon.ctl("config", "diff", str(other))).splitlines()
    assert "daemon.log_level = warn (in force: debug)" in lines
    other.write_text("[daemon]\nlog_level = loud\n")
    result = daemon.ctl("config", "diff", str(other))
    assert result.returncode == FAILED and f"{other}:2: daemon.log_level = loud" in result.stderr
