"""The demo: a language model decodes from KV that lives in the daemon, is killed, the daemon too, and another process goes on.

    python tools/demo/demo.py --build build [--quality]

Process A prefills a text, answers a question and is killed while it decodes. Then the daemon is killed and started again, and the
context is saved to disk, dropped and loaded. Process B finds the context by its tokens, answers another question, and compares each way of choosing rows with the model's own full attention. The numbers go to
BUILD/demo/report.json. The daemon is a private one in temporary directories; nothing is left behind."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

TREE = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TREE / "client-lib" / "python"), str(TREE / "tools" / "demo"), str(TREE / "tools" / "common")]

import output  # noqa: E402

TOKENS_AFTER_ANSWER = 4  # process A decodes this many more before it is killed


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--build", type=pathlib.Path, default=TREE / "build", help="where magicpigd was built")
    parser.add_argument("--tokens", type=int, default=6400, help="length of the context (the model's limit is 8192)")
    parser.add_argument("--rows", default="f16", choices=("bf16", "f16", "i8"), help="type of the daemon's rows")
    parser.add_argument("--quality", action="store_true", help="also ask for every planted fact over several seeds (minutes)")
    parser.add_argument("--phase", choices=("a", "b"), help=argparse.SUPPRESS)
    for hidden, kind in (("--socket", pathlib.Path), ("--work", pathlib.Path), ("--model", pathlib.Path), ("--events", int)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.build = arguments.build.resolve()
    return arguments


def main() -> int:
    arguments = parse()
    os.environ["MAGICPIG_LIBRARY"] = str(arguments.build / "libmagicpig.so.0")
    if arguments.phase:
        import phases

        {"a": phases.process_a, "b": phases.process_b}[arguments.phase](arguments)
        return 0
    for signal_number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, lambda number, frame: sys.exit(128 + number))  # so that everything is cleaned up
    missing = [name for name in ("magicpigd", "magicpigctl", "libmagicpig.so.0") if not (arguments.build / name).exists()]
    if missing:
        print(f"demo: {', '.join(missing)} missing in {arguments.build}: run `make` first", file=sys.stderr)
        return 1
    try:
        return drive(arguments)
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
        return 130


def drive(arguments: argparse.Namespace) -> int:
    path = arguments.build / "demo" / "report.json"
    try:
        output.check(path)
    except OSError as error:
        print(f"demo: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 1

    import checkpoint
    from private_daemon import PrivateDaemon

    begin = time.monotonic()
    arguments.model = arguments.build / "demo" / "model"
    checkpoint.ensure(arguments.model)
    pool = "3G" if arguments.quality else "2G"
    with PrivateDaemon(arguments.build / "magicpigd", pool_size=pool, instance="demo") as daemon:
        try:
            print(f"daemon: pid {daemon.process.pid}, socket {daemon.socket}")
            report = run_processes(arguments, daemon)
            print("magicpigctl ls:", flush=True)
            subprocess.run([arguments.build / "magicpigctl", "--socket", daemon.socket, "ls"], check=True)
        except (ChildFailed, subprocess.CalledProcessError) as error:
            print(f"demo: {error}\nthe daemon's last words:\n{daemon.log_tail()}", file=sys.stderr)
            return 1
    import report as reporting

    report["total_s"] = time.monotonic() - begin
    output.write(path, json.dumps(report, indent=1) + "\n")
    reporting.show(report)
    print(f"report: {path}")
    return 0 if all(report["checks"].values()) else 2


class ChildFailed(Exception):
    pass


class Child:
    """A process of the demo, and the events it tells."""

    def __init__(self, arguments: argparse.Namespace, phase: str, daemon):
        from private_daemon import dies_with_parent

        self.phase = phase
        read_end, write_end = os.pipe()
        command = [
            sys.executable, __file__, "--phase", phase, "--build", arguments.build, "--tokens", str(arguments.tokens),
            "--rows", arguments.rows, "--socket", daemon.socket, "--work", daemon.home, "--model", arguments.model,
            "--events", str(write_end), *(["--quality"] if arguments.quality else []),
        ]
        self.process = subprocess.Popen(
            [os.fspath(part) for part in command],
            stdin=subprocess.DEVNULL,
            pass_fds=[write_end],
            preexec_fn=dies_with_parent(signal.SIGKILL),
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        os.close(write_end)
        self.stream = os.fdopen(read_end)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.stream.close()

    def expect(self, event: str) -> dict:
        """The next event of this name; the ones before it are passed over."""
        for line in self.stream:
            values = json.loads(line)
            if values.pop("event") == event:
                return values
        raise ChildFailed(f"process {self.phase.upper()} ended with status {self.process.wait()} before '{event}'")


def run_processes(arguments: argparse.Namespace, daemon) -> dict:
    import report as reporting

    parts: dict[str, dict] = {}
    print("process A: prefill", flush=True)
    with Child(arguments, "a", daemon) as a:
        parts["prefilled"] = a.expect("prefilled")
        if arguments.quality:
            parts["quality"] = a.expect("quality")
        parts["answer"] = a.expect("answer")
        print(f"  {parts['answer']['city']}? {reporting.first_line(parts['answer']['text'])}", flush=True)
        while a.expect("token")["beyond"] < TOKENS_AFTER_ANSWER:
            pass
        a.process.send_signal(signal.SIGKILL)
        a.process.wait()
        print(f"process A: pid {a.process.pid} killed (SIGKILL) while decoding", flush=True)
    parts["survived"] = kill_save_and_load(arguments, daemon)
    print("process B: reopen", flush=True)
    with Child(arguments, "b", daemon) as b:
        parts["reopened"] = b.expect("reopened")
        print(f"  {parts['reopened']['city']}? {reporting.first_line(parts['reopened']['text'])}", flush=True)
        parts["evaluated"] = b.expect("evaluated")
        if b.process.wait() != 0:
            raise ChildFailed(f"process B ended with status {b.process.returncode}")
    return reporting.make(arguments, parts)


def kill_save_and_load(arguments: argparse.Namespace, daemon) -> dict:
    """What a context outlives besides its client; seconds of each."""
    killed = daemon.process.pid
    seconds = {"restart_s": daemon.kill_and_restart()}
    print(f"magicpigd: pid {killed} killed too (SIGKILL); pid {daemon.process.pid} serves its pool after {seconds['restart_s'] * 1e3:.0f} ms")
    ctl = [arguments.build / "magicpigctl", "--socket", daemon.socket]
    listed = subprocess.run([*ctl, "ls", "--json"], check=True, stdout=subprocess.PIPE).stdout
    names = [context["name"] for context in json.loads(listed)]
    for command in ("save", "drop", "load"):
        begin = time.monotonic()
        print(f"magicpigctl {command}: ", end="", flush=True)
        subprocess.run([*ctl, command, *names], check=True, stdin=subprocess.DEVNULL)
        seconds[f"{command}_s"] = time.monotonic() - begin
    return seconds


if __name__ == "__main__":
    sys.exit(main())
