"""The systemd units: systemd's own checks of them, and what must not be lost when somebody edits them."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAGICPIGD = pathlib.Path(os.environ.get("MAGICPIGD", ROOT / "build/magicpigd"))
SERVICES = ["magicpigd.service", "magicpigd@.service"]
SOCKETS = ["magicpigd.socket", "magicpigd@.socket"]
METRICS = ["magicpigd-metrics.service", "magicpigd-metrics.socket"]

needs_analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze (package systemd)")


@pytest.fixture(scope="module")
def units(tmp_path_factory):
    directory = tmp_path_factory.mktemp("units")
    programs = MAGICPIGD.parent.resolve()
    subprocess.run([ROOT / "tools/build/units", directory, programs, "/etc", programs], check=True)
    assert sorted(path.name for path in directory.iterdir()) == sorted(SERVICES + SOCKETS + METRICS)
    return directory


def settings(path: pathlib.Path) -> dict[str, dict[str, list[str]]]:
    """Section -> key -> values, in order; as systemd reads them, keys may repeat."""
    found: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = found.setdefault(header[1], {})
        elif line and not line.startswith("#"):
            key, value = line.split("=", 1)
            section.setdefault(key, []).append(value)
    return found


def test_nothing_is_left_to_fill_in(units):
    for path in units.iterdir():
        assert not re.search(r"@[A-Z_]+@", path.read_text()), path


@needs_analyze
@pytest.mark.parametrize("name", [*SERVICES, "magicpigd-metrics.service"])
def test_exposure(units, name):
    """At most 1.0 of 10. systemd-analyze counts in tenths, and its exit status says whether it is more."""
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=10", units / name], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", result.stdout)
    assert exposure and float(exposure[1]) <= 1.0


def verify(units, *names) -> str:
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(units / name for name in names)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return "\n".join(line for line in result.stderr.splitlines() if "magicpig" in line)


@needs_analyze
def test_systemd_finds_no_fault(units, tmp_path):
    assert verify(units, "magicpigd.service", "magicpigd.socket") == ""
    for kind in ("service", "socket"):
        shutil.copy(units / f"magicpigd@.{kind}", tmp_path / f"magicpigd@.{kind}")
    assert verify(tmp_path, "magicpigd@first.service", "magicpigd@first.socket") == ""
    assert verify(units, *METRICS) == ""


@needs_analyze
def test_systemd_would_find_one(units, tmp_path):
    for name in ("magicpigd.service", "magicpigd.socket"):
        shutil.copy(units / name, tmp_path)
    unit = tmp_path / "magicpigd.service"
    unit.write_text(unit.read_text().replace("RemoveIPC=no", "RemoveIpc=no"))
    assert "RemoveIpc" in verify(tmp_path, "magicpigd.service", "magicpigd.socket")


@pytest.mark.parametrize("name", SERVICES)
def test_traps(units, name):
    service = settings(units / name)["Service"]

    def last(key: str) -> str | None:
        return service.get(key, [None])[-1]

    assert last("RemoveIPC") == "no"  # it would delete the pool in /dev/shm
    assert "DynamicUser" not in service  # the pool's files belong to a user whose number stays
    assert last("User") == last("Group") == "magicpig"
    assert last("PrivateUsers") == "no"  # SO_PEERCRED would name nobody but "nobody"
    assert last("RuntimeDirectoryPreserve") == "yes"
    assert last("ProcSubset") != "pid"  # hides /proc/meminfo
    assert last("Type") == "notify"  # notify-reload is not known to systemd 252
    assert "$MAINPID" in last("ExecReload") and "HUP" in last("ExecReload")
    assert int(last("WatchdogSec")) > 0
    assert last("LimitMEMLOCK") == "infinity"
    assert last("Restart") == "on-failure"
    assert last("RestartPreventExitStatus") == "2"  # a wrong configuration does not get better by itself
    assert last("OOMPolicy") == "continue"
    assert int(last("OOMScoreAdjust")) < 0
    assert "PrivateTmp" in service and last("PrivateDevices") == "yes"  # /dev/shm is the host's all the same
    assert "FileDescriptorStoreMax" not in service  # a tmpfs file outlives the daemon by itself


@pytest.mark.parametrize("name", SERVICES)
def test_system_calls_that_are_needed_are_allowed(units, name):
    """Lists are applied in order: what is taken out with a group has to come back after it."""
    filters = settings(units / name)["Service"]["SystemCallFilter"]
    assert filters[0] == "@system-service"
    removed = next(i for i, value in enumerate(filters) if value.startswith("~"))
    given = " ".join(filters[removed + 1 :]).split()
    for call in ("io_uring_setup", "io_uring_enter", "io_uring_register", "mbind", "sched_setaffinity", "fchown", "chown"):
        assert call in given, call


@pytest.mark.parametrize("template", [False, True])
def test_service_and_socket_agree(units, template):
    at = "@" if template else ""
    service, socket = (settings(units / f"magicpigd{at}.{kind}") for kind in ("service", "socket"))
    command = service["Service"]["ExecStart"][0]
    path = socket["Socket"]["ListenSequentialPacket"][0]
    assert f"--daemon.socket={path}" in command.split()
    assert socket["Socket"]["SocketMode"] == ["0660"] and socket["Socket"]["SocketGroup"] == ["magicpig"]
    unit = "magicpigd@%i.socket" if template else "magicpigd.socket"
    assert service["Unit"]["Requires"] == [unit] and service["Install"]["Also"] == [unit]
    assert pathlib.PurePath(path).parent.name == service["Service"]["RuntimeDirectory"][0]
    assert ("%i" in command) == template
    assert f"--daemon.instance={'%i' if template else 'default'}" in command.split()


def test_metrics_are_nobodys_service(units):
    """It reads one file of the daemon's and answers on a socket that systemd opened: no right of the daemon's user, no network of its own."""
    service, socket = (settings(units / f"magicpigd-metrics.{kind}") for kind in ("service", "socket"))
    own = service["Service"]
    assert own["DynamicUser"] == ["yes"] and "User" not in own and own["SupplementaryGroups"] == ["magicpig"]
    assert own["PrivateNetwork"] == own["PrivateUsers"] == ["yes"] and own["RestrictAddressFamilies"] == ["none"]
    assert socket["Socket"]["ListenStream"] == ["127.0.0.1:9464"]
    assert service["Unit"]["Requires"] == ["magicpigd-metrics.socket"] and "Install" not in service
    daemon = settings(units / "magicpigd.service")["Service"]["ExecStart"][0].split()
    instance, path = (next(word.split("=")[1] for word in daemon if word.startswith(f"--daemon.{key}=")) for key in ("instance", "socket"))
    command = own["ExecStart"][0].split()
    assert command[1:] == ["metrics", "--listen", "systemd", "--stats", f"{pathlib.PurePath(path).parent}/{instance}.stats"]


def test_metrics_over_a_socket_of_systemds(units, tmp_path):
    """What the unit starts, with a socket as systemd hands it over: an answer though there is no daemon, and a clean end."""
    command = settings(units / "magicpigd-metrics.service")["Service"]["ExecStart"][0].split()
    command[-1] = str(tmp_path / "magicpigd.stats")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def hand_over():
            os.dup2(listener.fileno(), 3)
            os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), "1"
            os.execv(command[0], command)

        child = os.fork()
        if child == 0:
            hand_over()
        try:
            with socket.create_connection(listener.getsockname(), timeout=20) as client:
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                answer = b""
                while piece := client.recv(4096):
                    answer += piece
            assert answer.startswith(b"HTTP/1.1 503 ") and b"no daemon" in answer
        finally:
            os.kill(child, signal.SIGTERM)
            _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0


def test_metrics_take_no_other_socket(units):
    command = settings(units / "magicpigd-metrics.service")["Service"]["ExecStart"][0].split()
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and "no socket came from a service manager" in result.stderr
    for family, address, listening, why in [
        (socket.AF_INET, ("0.0.0.0", 0), True, "not a loopback address"),
        (socket.AF_INET, ("127.0.0.1", 0), False, "descriptor 3 is no listening stream socket"),
    ]:
        with socket.socket(family) as other:
            other.bind(address)
            if listening:
                other.listen()
            script = 'fd=$1; shift; exec 3<&"$fd"; exec env LISTEN_PID=$$ LISTEN_FDS=1 "$@"'
            result = subprocess.run(
                ["bash", "-c", script, "bash", str(other.fileno()), *command], capture_output=True, text=True, timeout=60, pass_fds=[other.fileno()]
            )
        assert result.returncode == 1 and why in result.stderr, result.stderr


def test_options_in_the_units_are_the_daemons(units):
    for name in SERVICES:
        command = settings(units / name)["Service"]["ExecStart"][0].replace("%i", "first").split()
        arguments = [word for word in command[1:] if word not in ("--config",) and not word.startswith("/etc")]
        assert len(arguments) == 2
        result = subprocess.run([command[0], *arguments, "--version"], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


def test_user_and_directories_are_declared():
    users = [line.split() for line in (ROOT / "systemd/magicpig.sysusers").read_text().splitlines() if not line.startswith("#")]
    assert [words[:3] for words in users] == [["u", "magicpig", "-"]]
    lines = [line.split() for line in (ROOT / "systemd/magicpig.tmpfiles").read_text().splitlines() if not line.startswith("#")]
    assert {(words[0], words[1]) for words in lines} == {
        ("d", "/run/magicpig"),
        ("d", "/var/lib/magicpig"),
        ("x", "/dev/shm/magicpig-*"),
    }


@pytest.mark.skipif(not shutil.which("systemd-sysusers") or os.geteuid() != 0, reason="needs systemd-sysusers, and root")
def test_sysusers_makes_the_user(tmp_path):
    for directory in ("etc", "usr/lib/sysusers.d"):
        (tmp_path / directory).mkdir(parents=True)
    shutil.copy(ROOT / "systemd/magicpig.sysusers", tmp_path / "usr/lib/sysusers.d/magicpig.conf")
    result = subprocess.run(["systemd-sysusers", f"--root={tmp_path}"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    line = next(line for line in (tmp_path / "etc/passwd").read_text().splitlines() if line.startswith("magicpig:"))
    assert line.split(":")[5] == "/var/lib/magicpig" and "nologin" in line
    assert any(line.startswith("magicpig:") for line in (tmp_path / "etc/group").read_text().splitlines())


def test_every_event_is_in_the_catalogue():
    """An entry for each id of daemon/base/log.c, and none for others."""
    source = (ROOT / "daemon/base/log.c").read_text()
    ids = re.findall(r'\[LOG_EVENT_\w+\] = "([0-9a-f]{32})"', source)
    entries = re.findall(r"^-- (\S+)$", (ROOT / "systemd/magicpigd.catalog").read_text(), re.M)
    assert ids and entries == ids


@pytest.mark.skipif(not shutil.which("journalctl"), reason="needs journalctl (package systemd)")
def test_the_catalogue_can_be_read(tmp_path):
    (tmp_path / "usr/lib/systemd/catalog").mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    shutil.copy(ROOT / "systemd/magicpigd.catalog", tmp_path / "usr/lib/systemd/catalog")
    result = subprocess.run(
        ["journalctl", f"--root={tmp_path}", "--update-catalog"], capture_output=True, text=True
    )
    assert result.returncode == 0 and "fail" not in result.stderr.lower(), result.stderr
    listed = subprocess.run(["journalctl", f"--root={tmp_path}", "--list-catalog"], capture_output=True, text=True)
    assert listed.stdout.count("magicpigd:") == 8, listed.stdout + listed.stderr
