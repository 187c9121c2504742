"""magicpigctl clients, kill-client, quota, drain, fork, version."""

from __future__ import annotations

import contextlib
import getpass
import grp
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest
from cli_daemon import ROOT, ctl, good

OK, FAILED, USAGE, NO_DAEMON, NOT_FOUND, PERMISSION = range(6)

OTHER = """
import sys
import magicpig
with magicpig.Client(sys.argv[1]) as client, client.queue() as queue:
    queue.nop()
    print("here", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other(daemon):
    """Another process with a connection and a queue."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "client-lib/python")}
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(daemon.socket)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "here\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- clients, kill-client ---------------------------------------------------------------------------------------------


def test_nobody_is_connected(daemon):
    assert good(daemon.ctl("clients")) == "no clients\n"
    assert json.loads(good(daemon.ctl("clients", "--json"))) == []
    own = json.loads(good(daemon.ctl("clients", "--all", "--json")))
    assert [c["self"] for c in own] == [True] and own[0]["command"] == "magicpigctl" and own[0]["uid"] == os.getuid()


def test_clients(daemon, other, book):
    seen = {c["pid"]: c for c in json.loads(good(daemon.ctl("clients", "--json")))}
    assert set(seen) == {other.pid, os.getpid()}
    assert seen[other.pid] | {"id": 0, "connected_ns": 0, "gid": 0, "service_ns": 0, "region_bytes": 0} == {
        "id": 0, "pid": other.pid, "command": seen[other.pid]["command"], "uid": os.getuid(), "gid": 0, "connected_ns": 0,
        "queues": 1, "contexts": 0, "leases": 0, "in_flight": 0, "region_bytes": 0, "counted": True, "requests": 1, "attends": 0,
        "errors": 0, "rows_read": 0, "bytes_read": 0, "appended_rows": 0, "service_ns": seen[other.pid]["service_ns"] * 0, "self": False,
    }  # fmt: skip
    mine = seen[os.getpid()]
    assert mine["contexts"] == mine["leases"] == 1 and mine["appended_rows"] == 900
    lines = good(daemon.ctl("clients")).splitlines()
    assert lines[0].split()[:6] == ["ID", "PID", "COMMAND", "USER", "QUEUES", "CONTEXTS"]
    rows = {line.split()[1]: line for line in lines[1:]}
    assert re.search(rf"^ *\d+ +{other.pid} +python\S* +{getpass.getuser()} +1 +0 +0 +1 +0 +0 +", rows[str(other.pid)])


def test_kill_client_by_id(daemon, other):
    (client,) = json.loads(good(daemon.ctl("clients", "--json")))
    assert good(daemon.ctl("kill-client", str(client["id"]))) == f"client {client['id']} ended\n"
    until(lambda: good(daemon.ctl("clients")) == "no clients\n")
    result = daemon.ctl("kill-client", str(client["id"]))
    assert result.returncode == NOT_FOUND
    assert result.stderr == f"magicpigctl kill-client: there is no client {client['id']}\n"
    assert f"client {client['id']} (pid {other.pid}" in daemon.log_text()


def test_kill_client_by_pid(daemon, other):
    (client,) = json.loads(good(daemon.ctl("clients", "--json")))
    assert json.loads(good(daemon.ctl("kill-client", "--json", "--pid", str(other.pid)))) == [client["id"]]
    result = daemon.ctl("kill-client", "--pid", str(other.pid))
    assert result.returncode == NOT_FOUND and result.stdout == ""
    assert result.stderr == f"magicpigctl kill-client: no client with pid {other.pid}\n"


@contextlib.contextmanager
def a_daemon_that_lists_nothing(path):
    """It takes connections, and is out of memory for whatever else it is asked."""
    header = struct.Struct("=IHHIIiI")  # magic, version, operation, size, tag, status, reserved

    def serve(listener):
        connection, _ = listener.accept()
        with connection:
            while request := connection.recv(65536):
                magic, version, operation, size, tag, _, _ = header.unpack_from(request)
                text = request[header.size :] if operation == 1 else b"no memory for a list".ljust(256, b"\0")
                status = 0 if operation == 1 else -5
                connection.send(header.pack(magic, version, operation, header.size + len(text), tag, status, 0) + text)

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        server = threading.Thread(target=serve, args=[listener])
        server.start()
        yield
        server.join(20)
        assert not server.is_alive()


@pytest.mark.parametrize(
    "command", [["kill-client", "--pid", "1"], ["clients"], ["quota", "--all"], ["ls"], ["saved"], ["tune", "--list"]], ids=lambda c: c[0]
)
def test_a_list_that_fails_is_not_an_empty_one(command, tmp_path):
    path = tmp_path / "magicpigd.sock"
    with a_daemon_that_lists_nothing(path):
        result = ctl("--socket", str(path), *command, "--json")
    assert result.returncode == FAILED and result.stdout == ""
    assert result.stderr.startswith(f"magicpigctl {command[0]}: ") and "no memory for a list" in result.stderr


# ---- quota ------------------------------------------------------------------------------------------------------------


def test_quota(daemon, book):
    own, group = json.loads(good(daemon.ctl("quota", "--json")))
    assert own["uid"] == os.getuid() and group["gid"] == os.getgid() and "uid" not in group
    for each in own, group:
        assert each["contexts"] == 1 and each["bytes"] > 300 * 3 * 2 * 2 * 64 * 2
        assert each["clients"] >= 1 and each["requests_limit"] == 0
    assert own["clients_limit"] > 1 and own["queues_limit"] > 1 and own["region_bytes_limit"] > 0 and group["region_bytes_limit"] == 0
    by_name = json.loads(good(daemon.ctl("quota", "--json", getpass.getuser(), str(os.getuid()))))
    assert [q["uid"] for q in by_name] == [os.getuid()]
    name = grp.getgrgid(os.getgid()).gr_name
    assert [q["gid"] for q in json.loads(good(daemon.ctl("quota", "--json", "-g", name, "--group", str(os.getgid()))))] == [os.getgid()]
    title, row, of_group = good(daemon.ctl("quota", "--all")).splitlines()
    assert title.split() == ["HOLDER", "MEMORY", "CONTEXTS", "CLIENTS", "QUEUES", "QUEUE", "MEMORY", "REQUESTS/S", "AT", "MOST"]
    assert row.startswith(f"user {getpass.getuser()} ") and f"of {own['clients_limit']}" in row
    assert of_group.startswith(f"group {name} ") and of_group.endswith(" -")


def test_quota_is_set(daemon, book):
    name = grp.getgrgid(os.getgid()).gr_name
    text = good(daemon.ctl("quota", "set", "group", name, "bytes=1G", "contexts=7", "requests=5000"))
    assert text == (
        f"limits group {name}.bytes = 1G (was not set)\nlimits group {name}.contexts = 7 (was not set)\nlimits group {name}.requests = 5000 (was not set)\n"
        f"until the next reload or restart; for good, in the daemon's configuration file:\n"
        f"[limits group {name}]\nbytes = 1G\ncontexts = 7\nrequests = 5000\n"
    )
    (group,) = json.loads(good(daemon.ctl("quota", "--json", "--group", name)))
    assert (group["bytes_limit"], group["contexts_limit"], group["requests_limit"]) == (1 << 30, 7, 5000)
    row = good(daemon.ctl("quota", "-g", name)).splitlines()[1]
    assert " of 1.0 GiB " in row and " 1 of 7 " in row and row.endswith(" 5,000")
    assert "limits user 4242.queues = 3" in good(daemon.ctl("quota", "set", "user", "4242", "queues=3"))
    (other,) = json.loads(good(daemon.ctl("quota", "--json", "4242")))
    assert other["queues_limit"] == 3
    good(daemon.ctl("reload"))
    (group,) = json.loads(good(daemon.ctl("quota", "--json", "--group", name)))
    assert (group["bytes_limit"], group["contexts_limit"], group["requests_limit"]) == (0, 0, 0)


def test_quota_that_cannot_be_set(daemon):
    for arguments in (["set"], ["set", "user", "0"], ["set", "all", "x", "bytes=1"], ["set", "user", "nobody at all", "bytes=1"],
                      ["set", "user", "0", "bytes"], ["set", "--all", "user", "0", "bytes=1"], ["--all", "-g", "0"], ["-g", "no such"]):  # fmt: skip
        assert daemon.ctl("quota", *arguments).returncode == USAGE, arguments
    for assignment in "speed=3", "bytes=much":
        result = daemon.ctl("quota", "set", "user", "0", assignment)
        assert result.returncode == FAILED and result.stdout == "" and assignment.split("=")[0] in result.stderr
    result = daemon.ctl("quota", "set", "user", "0", "clients=50", "bytes=much")
    assert result.returncode == FAILED and result.stdout.startswith("limits user 0.clients = 50")
    good(daemon.ctl("reload"))


# ---- drain ------------------------------------------------------------------------------------------------------------


def test_drain_and_back(daemon, other):
    assert good(daemon.ctl("drain", "--state")) == "not drained: 1 client with 1 queue\n"
    assert good(daemon.ctl("drain")) == "drained: 1 client with 1 queue\n"
    assert "drained: nothing more is opened" in good(daemon.ctl("status", "-i", "0"))
    result = daemon.ctl("ping", "--queue")
    assert result.returncode == FAILED and "the daemon is drained" in result.stderr
    result = daemon.ctl("drain", "--wait", "1")
    assert result.returncode == FAILED and "there are still queues after 1 s" in result.stderr
    other.stdin.write("\n")
    other.stdin.close()
    state = json.loads(good(daemon.ctl("drain", "--wait", "20", "--json")))
    assert state["drained"] is True and state["queues"] == 0
    other.wait()
    until(lambda: json.loads(good(daemon.ctl("drain", "--state", "--json")))["clients"] == 0)
    assert good(daemon.ctl("drain", "--undo")) == "not drained: 0 clients with 0 queues\n"
    good(daemon.ctl("ping", "--queue"))
    assert json.loads(good(daemon.ctl("status", "-i", "0", "--json")))["drained"] is False


def test_python(daemon, client, other):
    import magicpig

    ids = {info.pid: info.id for info in client.clients()}
    assert set(ids) == {other.pid, os.getpid()}
    assert client.quota().clients == 2 and client.quota(4242).clients == 0
    group = client.quota(gid=os.getgid())
    assert (group.group, group.uid, group.clients) == (1, os.getgid(), 2) and client.quota(gid=4242).clients == 0
    assert client.drain(True).drained == 1 and client.drain().drained == 1
    with pytest.raises(magicpig.Shutdown, match="drained"):
        client.queue()
    assert client.drain(False).drained == 0
    client.kill(ids[other.pid])
    with pytest.raises(magicpig.NotFound):
        client.kill(ids[other.pid])


# ---- fork, version ----------------------------------------------------------------------------------------------------


def test_fork(daemon, client, book):
    book.close()  # the writer's lease does not matter, but its handle is not needed
    assert good(daemon.ctl("fork", "book", "all")) == "all: 300 tokens\n"
    part = json.loads(good(daemon.ctl("fork", "--json", "book", "part", "--tokens", "100")))
    assert part["name"] == "part" and part["committed"] == 100 and part["writer_pid"] == 0
    result = daemon.ctl("fork", "book", "part")
    assert result.returncode == FAILED and result.stderr.startswith("magicpigctl fork: 'book': ") and "part" in result.stderr
    result = daemon.ctl("fork", "nothing", "part")
    assert result.returncode == NOT_FOUND and "'nothing'" in result.stderr
    result = daemon.ctl("fork", "book", "long", "-t", "301")
    assert result.returncode == FAILED and "301" in result.stderr
    good(daemon.ctl("drop", "--yes", "all", "part"))


def test_version_of_both(daemon):
    own, theirs = good(daemon.ctl("version")).splitlines()
    version = re.fullmatch(r"magicpigctl (\d+\.\d+\.\d+)", own).group(1)
    assert theirs == f"magicpigd   {version} (instance {daemon.instance}, pid {daemon.process.pid})"
    assert json.loads(good(daemon.ctl("version", "--json"))) == {"magicpigctl": version, "magicpigd": version}
    assert good(daemon.ctl("version", "--client")) == own + "\n"


def test_version_without_a_daemon(tmp_path):
    result = ctl("--socket", str(tmp_path / "none"), "version")
    assert result.returncode == NO_DAEMON
    assert result.stdout.startswith("magicpigctl ") and "start magicpigd" in result.stderr
    assert json.loads(good(ctl("version", "--client", "--json")))["magicpigd"] is None


@pytest.mark.parametrize("command", [["clients"], ["kill-client", "1"], ["quota"], ["drain"], ["fork", "a", "b"]], ids=" ".join)
def test_no_daemon(command, tmp_path):
    path = str(tmp_path / "magicpigd.sock")
    result = ctl("--socket", path, *command)
    assert result.returncode == NO_DAEMON and result.stdout == ""
    assert path in result.stderr and result.stderr.startswith(f"magicpigctl {command[0]}: ")
