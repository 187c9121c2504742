"""magicpigctl metrics and health: the text, the HTTP endpoint, a daemon that is stuck, the Grafana dashboard's queries."""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import time

import pytest
from cli_daemon import MAGICPIGCTL, ROOT, ctl, good

OK, FAILED, USAGE, NO_DAEMON = range(4)
OPERATIONS = ["nop", "attend", "append", "commit", "truncate", "read"]


# ---- a strict reader of both formats: families in one piece each, HELP and TYPE first, no sample twice ------------------

SAMPLE = re.compile(r"([a-z_]+)(?:\{((?:[a-z_]+=\"(?:[^\"\\\n]|\\[\\\"n])*\",?)*)\})? (\S+)")
SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"]}


def parse(text: str, open_metrics: bool = False) -> tuple[dict, dict]:
    """Types by family, values by (name, labels)."""
    assert text.endswith("\n")
    lines = text[:-1].split("\n")
    if open_metrics:
        assert lines.pop() == "# EOF"
    types, values, current, kind = {}, {}, None, None
    for line in lines:
        if line.startswith("# "):
            _, word, name, rest = line.split(" ", 3)
            if word == "HELP":
                assert name not in types and rest.endswith(".")
                current, kind = name, None
            elif word == "TYPE":
                assert name == current
                types[name] = kind = rest
            else:
                assert word == "UNIT" and open_metrics and name == current and name.endswith("_" + rest)
            continue
        name, labels, value = SAMPLE.fullmatch(line).groups()
        suffixes = SUFFIXES[kind] if open_metrics or kind == "histogram" else [""]
        assert name in [current + suffix for suffix in suffixes], line
        key = (name, tuple(re.findall(r'([a-z_]+)="((?:[^"\\]|\\.)*)"', labels or "")))
        assert key not in values
        values[key] = float(value)
    return types, values


def value(values: dict, name: str, **labels: str) -> float:
    (found,) = [v for (n, l), v in values.items() if n == name and dict(l) == labels]
    return found


def check_histograms(values: dict) -> None:
    for op in OPERATIONS:
        buckets = [(dict(l)["le"], v) for (n, l), v in values.items() if n.endswith("_bucket") and dict(l)["op"] == op]
        bounds = [float(le) for le, _ in buckets]
        assert bounds == sorted(bounds) and bounds[-1] == float("inf") and len(set(bounds)) == len(bounds) == 27
        assert [v for _, v in buckets] == sorted(v for _, v in buckets)
        count = value(values, "magicpig_request_duration_seconds_count", op=op)
        assert buckets[-1][1] == count == value(values, "magicpig_requests_total", op=op)


def test_text_format(daemon, client, book):
    types, values = parse(good(daemon.ctl("metrics")))
    assert all(name.endswith("_total") for name, kind in types.items() if kind == "counter")
    check_histograms(values)
    assert value(values, "magicpig_contexts") == 1 and value(values, "magicpig_alive") == 1 and value(values, "magicpig_ready") == 1
    assert value(values, "magicpig_pool_size_bytes") == 64 << 20
    assert value(values, "magicpig_appended_rows_total") == 900
    assert value(values, "magicpig_requests_total", op="commit") == 1
    assert value(values, "magicpig_request_duration_seconds_sum", op="append") > 0
    assert value(values, "magicpig_build_info", version="0.1.0", daemon_instance=daemon.instance) == 1
    assert abs(value(values, "magicpig_start_time_seconds") - time.time()) < 600
    labels = {name for key in values for name, _ in key[1]}
    assert labels == {"version", "daemon_instance", "op", "le", "worker", "state"}  # none grows with use


def test_open_metrics(daemon, book):
    types, values = parse(good(daemon.ctl("metrics", "--openmetrics")), open_metrics=True)
    assert types["magicpig_build"] == "info" and types["magicpig_requests"] == "counter"
    plain_types, plain = parse(good(daemon.ctl("metrics")))
    assert set(plain) == set(values)
    check_histograms(values)


def test_time_of_workers_adds_up(daemon):
    def look() -> tuple[float, float, float]:
        earliest = time.monotonic()
        _, values = parse(good(daemon.ctl("metrics")))
        return earliest, sum(v for (name, _), v in values.items() if name == "magicpig_worker_seconds_total"), time.monotonic()

    first, then = look(), time.sleep(1) or look()
    spent, least, most = then[1] - first[1], then[0] - first[2], then[2] - first[0]  # each look was at some moment of its bracket
    assert 2 * least - 0.1 <= spent <= 2 * most + 0.1  # two workers


def test_metrics_without_a_daemon(tmp_path):
    result = ctl("--socket", str(tmp_path / "magicpigd.sock"), "metrics")
    assert result.returncode == NO_DAEMON and result.stdout == "" and "start magicpigd" in result.stderr
    result = ctl("metrics", "--stats", str(tmp_path / "x.stats"))
    assert result.returncode == NO_DAEMON
    assert result.stderr == f"magicpigctl metrics: {tmp_path}/x.stats: No such file or directory\n"
    (tmp_path / "x.stats").write_bytes(b"x" * 100000)
    result = ctl("metrics", "--stats", str(tmp_path / "x.stats"))
    assert result.returncode == NO_DAEMON and "not a statistics file of magicpigd" in result.stderr
    assert ctl("metrics", "--json").returncode == USAGE


# ---- health -------------------------------------------------------------------------------------------------------------


def test_healthy(daemon):
    assert good(daemon.ctl("health")) == "healthy and ready\n"
    assert json.loads(good(daemon.ctl("health", "--ready", "--json"))) == {"healthy": True, "ready": True, "reason": None}


def test_drained_is_healthy_and_not_ready(daemon):
    good(daemon.ctl("drain"))
    try:
        assert good(daemon.ctl("health")) == "healthy, not ready: it is drained\n"
        assert daemon.ctl("health", "--ready").returncode == FAILED
    finally:
        good(daemon.ctl("drain", "--undo"))


def test_health_without_a_daemon(tmp_path):
    result = ctl("--socket", str(tmp_path / "magicpigd.sock"), "health")
    assert result.returncode == NO_DAEMON and result.stdout == ""
    assert ctl("health", "--stats", str(tmp_path / "none")).returncode == NO_DAEMON


# ---- over HTTP ----------------------------------------------------------------------------------------------------------


def process_seconds(pid: int) -> float:
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Endpoint:
    def __init__(self, daemon, *addresses: str, through: list[str] = []):
        listen = [word for address in addresses for word in ("--listen", address)]
        command = [*through, str(MAGICPIGCTL), "--socket", str(daemon.socket), "metrics", *listen]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.where = [self.process.stdout.readline().removeprefix("listening on ").strip() for _ in addresses]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=20)
        assert (self.process.returncode, out, err) == (OK, "", "")

    def connect(self, which: int = 0) -> socket.socket:
        where = self.where[which]
        if where.startswith("unix:"):
            s = socket.socket(socket.AF_UNIX)
            s.settimeout(20)
            s.connect(where[5:])
            return s
        host, port = where.rsplit(":", 1)
        return socket.create_connection((host.strip("[]"), int(port)), 20)

    def ask(self, request: bytes, which: int = 0) -> tuple[int, dict, str]:
        with self.connect(which) as s:
            s.sendall(request)
            answer = b""
            while piece := s.recv(65536):
                answer += piece
        head, body = answer.decode().split("\r\n\r\n", 1)
        status, *headers = head.split("\r\n")
        headers = dict(line.split(": ", 1) for line in headers)
        assert headers["Connection"] == "close"
        return int(status.split()[1]), headers, body

    def get(self, path: str, *headers: str, which: int = 0) -> tuple[int, dict, str]:
        lines = [f"GET {path} HTTP/1.1", "Host: here", *headers]
        return self.ask(("\r\n".join(lines) + "\r\n\r\n").encode(), which)


@pytest.fixture
def endpoint(daemon, tmp_path):
    with Endpoint(daemon, f"unix:{tmp_path}/http.sock", "127.0.0.1:0") as endpoint:
        yield endpoint
    assert not (tmp_path / "http.sock").exists()


def test_scrape(endpoint, book):
    for which in (0, 1):
        status, headers, body = endpoint.get("/metrics?x=1", which=which)
        assert status == 200 and headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert int(headers["Content-Length"]) == len(body)
        parse(body)
    accept = "accept: text/plain;q=0.5, application/openmetrics-text; version=1.0.0"
    status, headers, body = endpoint.get("/metrics", accept)
    assert headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    parse(body, open_metrics=True)


def test_probes(daemon, endpoint):
    assert endpoint.get("/healthz")[::2] == (200, "ok\n")
    assert endpoint.get("/readyz")[::2] == (200, "ok\n")
    good(daemon.ctl("drain"))
    try:
        assert endpoint.get("/healthz")[::2] == (200, "ok\n")
        assert endpoint.get("/readyz")[::2] == (503, "it is drained\n")
    finally:
        good(daemon.ctl("drain", "--undo"))
    status, headers, body = endpoint.ask(b"HEAD /healthz HTTP/1.0\r\n\r\n")
    assert (status, headers["Content-Length"], body) == (200, "3", "")


def test_a_stuck_daemon_is_scraped_and_not_healthy(daemon, endpoint):
    daemon.freeze()
    try:
        deadline = time.monotonic() + 30
        while endpoint.get("/healthz")[0] == 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        status, _, body = endpoint.get("/healthz")
        assert status == 503 and re.fullmatch(rf"pid {daemon.process.pid} has not been seen alive for \d+ s\n", body)
        assert endpoint.get("/readyz")[0] == 503
        _, values = parse(endpoint.get("/metrics")[2])
        assert value(values, "magicpig_alive") == 0 and value(values, "magicpig_heartbeat_age_seconds") > 4
        result = daemon.ctl("health")
        assert result.returncode == FAILED and result.stdout.startswith(f"not healthy: pid {daemon.process.pid} has not been seen")
    finally:
        daemon.thaw()
    while endpoint.get("/healthz")[0] != 200:
        assert time.monotonic() < deadline + 30
        time.sleep(0.1)


@pytest.mark.parametrize(
    "request_, status",
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"GET /secret HTTP/1.1\r\n\r\n", 404),
        (b"GET /../metrics HTTP/1.1\r\n\r\n", 404),
        (b"nonsense\r\n\r\n", 400),
        (b"GET metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /met\0rics HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 9000, 431),
    ],
    ids=lambda v: ascii(v)[:30],
)
def test_bad_requests(endpoint, request_, status):
    seen, headers, body = endpoint.ask(request_)
    assert seen == status and body.count("\n") == 1
    assert ("Allow" in headers) == (status == 405)
    assert endpoint.get("/healthz")[0] == 200


def test_those_who_say_nothing_hold_up_nobody_for_long(endpoint):
    silent = [endpoint.connect() for _ in range(32)]  # all places
    asking = endpoint.connect()
    asking.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
    assert asking.recv(1000).startswith(b"HTTP/1.1 200")  # after the silent ones' five seconds
    readable, _, _ = select.select(silent, [], [], 10)
    assert readable and all(s.recv(10) == b"" for s in readable)
    for s in [*silent, asking]:
        s.close()


def test_without_descriptors_it_waits_instead_of_spinning(daemon, tmp_path):
    crowded = ["bash", "-c", 'for i in {3..90}; do eval "exec $i</dev/null"; done; exec "$@"', "bash"]
    with Endpoint(daemon, f"unix:{tmp_path}/s", through=crowded) as endpoint:
        pid = endpoint.process.pid
        assert endpoint.get("/healthz")[0] == 200
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (80, hard))
        with endpoint.connect() as asking:
            asking.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            line = endpoint.process.stderr.readline()
            assert "no connection can be accepted: Too many open files" in line
            used = process_seconds(pid)
            time.sleep(2)
            assert process_seconds(pid) - used < 1  # one that spins takes two; one that waits, next to nothing
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
            assert asking.recv(1000).startswith(b"HTTP/1.1 200")
    # and the line was written once: Endpoint's end has seen no other


def test_addresses(daemon, tmp_path):
    def refused(address: str) -> str:
        result = daemon.ctl("metrics", "--listen", address)
        assert result.returncode == FAILED and result.stdout == ""
        assert result.stderr.startswith(f"magicpigctl metrics: --listen {address}: ")
        return result.stderr

    for address in ("0.0.0.0:9464", "10.1.2.3:1", "[::]:9464"):
        assert "not a loopback address" in refused(address)
    for address in ("9464", "localhost:1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "::1:80", "[::1]"):
        assert "unix:/PATH, 127.0.0.1:PORT or [::1]:PORT expected" in refused(address)
    assert "1 to 107 bytes" in refused("unix:")
    file = tmp_path / "file"
    file.write_text("precious")
    assert "Address already in use" in refused(f"unix:{file}") and file.read_text() == "precious"
    with Endpoint(daemon, f"unix:{tmp_path}/s"):
        assert "Address already in use" in refused(f"unix:{tmp_path}/s")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "s"))
    with Endpoint(daemon, f"unix:{tmp_path}/s") as taken_over:
        assert taken_over.get("/healthz")[0] == 200


def test_the_endpoint_outlives_the_daemon(tmp_path):
    from cli_daemon import Daemon

    daemon = Daemon()
    with Endpoint(daemon, f"unix:{tmp_path}/s") as endpoint:
        assert endpoint.get("/healthz")[0] == 200
        daemon.stop()
        status, _, body = endpoint.get("/healthz")
        assert status == 503 and body == "no daemon: its statistics file: No such file or directory\n"
        assert endpoint.get("/metrics")[0] == 503


# ---- the dashboard ------------------------------------------------------------------------------------------------------


def test_dashboard_asks_for_what_there_is(daemon):
    dashboard = json.loads((ROOT / "tools/grafana/magicpigd.json").read_text())
    _, values = parse(good(daemon.ctl("metrics")))
    known: dict[str, set] = {}
    for name, labels in values:
        known.setdefault(name, {"job", "instance"}).update(l for l, _ in labels)
    expressions = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    expressions += [a["expr"] for a in dashboard["annotations"]["list"]]
    expressions += [v["definition"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    asked = set()
    for expression in expressions:
        assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")
        for name, selector in re.findall(r"\b(magicpig_\w+)(?:\{([^}]*)\})?", expression):
            assert name in known, expression
            assert set(re.findall(r"(\w+)=~?\"", selector)) <= known[name], expression
            for label, wanted in re.findall(r'(op|state)="(\w+)"', selector):
                assert wanted in {dict(l).get(label) for n, l in values if n == name}
            asked.add(name)
        for labels in re.findall(r"by \(([^)]*)\)", expression):
            assert set(labels.split(", ")) <= set.union(*known.values())
        for name in re.findall(r"rate\((magicpig_\w+)", expression) + re.findall(r"increase\((magicpig_\w+)", expression):
            assert re.search(r"_(total|bucket|sum|count)$", name), f"{name} is no counter"
    legends = {l for panel in dashboard["panels"] for t in panel["targets"] for l in re.findall(r"\{\{(\w+)\}\}", t["legendFormat"])}
    assert legends <= set.union(*known.values())
    grids = [panel["gridPos"] for panel in dashboard["panels"]]
    for i, a in enumerate(grids):  # nothing lies over anything else
        assert a["x"] + a["w"] <= 24
        for b in grids[:i]:
            assert a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"] or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
    unseen = {n for n in known if n.startswith("magicpig_")} - asked
    assert unseen <= {"magicpig_drained", "magicpig_heartbeat_age_seconds", "magicpig_control_messages_total"}
