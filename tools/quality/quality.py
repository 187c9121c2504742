"""make quality: the daemon's own answers on tensors of real models, against full attention.

    python tools/quality/quality.py --build build --quick           the committed fixture: heads only, minutes
    python tools/quality/quality.py --build build --models smollm2  everything: captures, heads, whole-model KL; hours
    python tools/quality/quality.py --build build --jobs 16         the same on a machine with many cores

Writes BUILD/quality/report.json and report.html (with --quick: quick.json, quick.html) and prints tables. What a model computed and
what the daemon answered is cached below BUILD/quality, by content; an interrupted run goes on where it was. Exits 2 with --quick if a
threshold is passed, 3 if something is left to do, 1 if something failed."""

from __future__ import annotations

import argparse
import os
import pathlib
import platform
import signal
import sys
import time

TREE = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TREE / part) for part in ("client-lib/python", "tools/common", "tools/quality")]

import output  # noqa: E402

FIXTURE = TREE / "tools" / "quality" / "fixture.npz"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--build", type=pathlib.Path, default=TREE / "build", help="where magicpigd was built")
    parser.add_argument("--quick", action="store_true", help="the committed fixture only; no model")
    parser.add_argument("--models", default="smollm2,gemma,gemma-32k", help="of smollm2, gemma, gemma-32k")
    parser.add_argument("--texts", default="prose,manual,code,facts,words", help="of prose, manual, code, facts, words")
    parser.add_argument("--documents", type=int, default=4, help="of each text; two blocks of 64 tokens are scored in each")
    parser.add_argument("--seeds", type=int, default=10, help="rotations, tables and draws are made anew for each")
    parser.add_argument("--other-seeds", type=int, default=0, help="of these, how many also run the settings that no target's ratio needs; 0: all")
    parser.add_argument("--probe-seeds", type=int, default=3, help="of these, how many also look which heavy rows were read")
    parser.add_argument("--no-kl", action="store_true", help="heads only")
    parser.add_argument("--jobs", type=int, default=max(1, len(os.sched_getaffinity(0)) // 2), help="processes, each with a daemon of its own")
    parser.add_argument("--device", default="auto", help="where the model runs: cpu, cuda, or auto (cuda where torch sees one)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after so long, with a report of what there is")
    parser.add_argument("--data", type=pathlib.Path, help="folder with the packages of models and texts, for a machine without network ($MAGICPIG_DATA)")
    parser.add_argument("--plan", action="store_true", help="say what is to be done, and do nothing")
    parser.add_argument("--report-only", action="store_true", help="a report of what there is")
    chosen = parser.parse_args(arguments)
    if min(chosen.documents, chosen.seeds, chosen.jobs) < 1:
        parser.error("--documents, --seeds and --jobs begin at 1")
    chosen.build = chosen.build.resolve()
    chosen.other_seeds = chosen.other_seeds or chosen.seeds
    if chosen.data:
        os.environ["MAGICPIG_DATA"] = str(chosen.data.resolve())
    return chosen


class Progress:
    """One line per step, with the time left as the steps so far suggest."""

    def __init__(self, steps: int):
        self.steps, self.done, self.begin = steps, 0, time.monotonic()

    def say(self, what: str) -> None:
        passed = time.monotonic() - self.begin
        left = f", about {passed / self.done * (self.steps - self.done) / 60:.0f} min left" if self.done else ""
        line = f"[{self.done}/{self.steps}, {passed / 60:.1f} min{left}] {what}"
        print(f"\r\033[K{line[:150]}" if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n", flush=True)

    def finish(self, what: str) -> None:
        self.done += 1
        self.say(what)
        if sys.stdout.isatty() and self.done == self.steps:
            print()


def main() -> int:
    arguments = parse()
    os.environ["MAGICPIG_LIBRARY"] = str(arguments.build / "libmagicpig.so.0")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))  # so that the daemon is stopped
    missing = [name for name in ("magicpigd", "libmagicpig.so.0") if not (arguments.build / name).exists()]
    if missing:
        print(f"quality: {', '.join(missing)} missing in {arguments.build}: run `make` first", file=sys.stderr)
        return 1
    try:
        for kind in ("json", "html"):
            output.check(report_path(arguments, kind))
    except OSError as error:
        print(f"quality: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    try:
        return quick(arguments) if arguments.quick else full(arguments)
    except KeyboardInterrupt:
        print("\nquality: interrupted; what was done is kept", file=sys.stderr)
        return 130


# ---- the two modes


def quick(arguments: argparse.Namespace) -> int:
    import document
    import heads
    import settings
    import studies
    import thresholds
    from evaluate import evaluate
    from summary import Group, Measured

    seeds = min(arguments.seeds, 4)
    progress, tensors = Progress(seeds + 1), document.load(FIXTURE)
    references = [heads.reference(tensors, m) for m in range(len(tensors.measured))]
    measured = Measured.of(tensors, references)
    with daemon(arguments, "512M") as client:
        for seed in range(1, seeds + 1):
            wanted = [s for s in settings.quick() if seed == 1 or s.redraw]
            measured.evaluations[seed] = evaluate(client, tensors, references, wanted, seed, probe=True, model_run=None, say=lambda text: None)
            progress.finish(f"seed {seed}")
        study = studies.study(client, tensors, references, lambda text: None, quick=True)
        progress.finish("studies")
    group = Group(tensors.model, tensors.text, [measured], study)
    report = publish(arguments, [group], settings.quick(), show=True)
    return 0 if thresholds.show(report) else 2


def full(arguments: argparse.Namespace) -> int:
    import dispatch
    import models
    import settings
    import texts

    for what, asked, known in (("model", arguments.models, models.KINDS), ("text", arguments.texts, texts.KINDS)):
        unknown = set(asked.split(",")) - set(known)
        if unknown:
            print(f"quality: no {what} {', '.join(sorted(unknown))}", file=sys.stderr)
            return 1
    work = dispatch.Work(
        build=arguments.build, settings=settings.full(), kl=not arguments.no_kl, other_seeds=arguments.other_seeds, probe_seeds=arguments.probe_seeds,
        documents=arguments.documents, device=device(arguments),
    )
    files = work.files()
    tasks = [t for t in every_task(arguments, work.settings) if not (files.captured(t) if t.kind == "capture" else files.found(t))]
    describe(arguments, tasks, work.device)
    if arguments.plan:
        return 0
    left, failures = ([], []) if arguments.report_only else carry_out(arguments, work, files, tasks)
    publish(arguments, gather(arguments, files, work.settings), work.settings, show=True)
    left += tasks if arguments.report_only else []
    if left:
        print(f"quality: {len(left)} tasks are left; the same command goes on with them")
    return 1 if failures else 3 if left else 0


def every_task(arguments: argparse.Namespace, chosen: list) -> list:
    """In the order in which they are to be done: few seeds of all documents say more than all seeds of a few."""
    import models
    import settings
    from files import Task

    documents = [
        (model, text, number)
        for number in range(arguments.documents)
        for model in arguments.models.split(",")
        for text in arguments.texts.split(",")
        if number < min(arguments.documents, models.KINDS[model].documents)
    ]
    captures = [Task("capture", *which) for which in documents]
    studies = [(1.5, Task("study", *which)) for which in documents if which[2] == 0]
    seeds = [
        (seed if part == "core" else 3 * seed, Task("seed", *which, seed, part))
        for seed in range(1, arguments.seeds + 1)
        for part in settings.parts(chosen, seed, seed <= arguments.other_seeds)
        for which in documents
    ]
    return captures + [task for _, task in sorted(studies + seeds, key=lambda ranked: ranked[0])]


PACE = {"capture": {"smollm2": 90, "gemma": 350, "gemma-32k": 1300}, "seed": {"smollm2": 40, "gemma": 40, "gemma-32k": 80}, "study": {}}


def describe(arguments: argparse.Namespace, tasks: list, device: str) -> None:
    count = lambda kind, other=None: sum(t.kind == kind and other in (None, t.part != "core") for t in tasks)
    counts = f"{count('capture')} captures, {count('seed', False)} seeds, {count('seed', True)} contexts of other settings, {count('study')} studies"
    hours = sum(PACE[t.kind].get(t.model, 80) for t in tasks) / 3600 / arguments.jobs
    print(f"to do: {counts}; {arguments.jobs} processes, models on {device}; {hours:.1f} h at the pace of two old cores for each process", flush=True)


def carry_out(arguments: argparse.Namespace, work, files, tasks: list) -> tuple[list, list[str]]:
    """Tasks left, failures."""
    import dispatch
    import models

    begin, progress = time.monotonic(), Progress(len(tasks))
    loaded = {t.model for t in tasks if work.kl or not files.capture(t).exists()}
    for name in sorted(loaded):
        models.KINDS[name].prepare(arguments.build)
    crew = dispatch.Dispatcher(work, arguments.jobs, begin + arguments.minutes * 60, progress)

    def ready(task) -> bool:
        other = dispatch.other_document(task, min(arguments.documents, models.KINDS[task.model].documents))
        return task.kind == "capture" or all(files.captured(t) for t in (task, other) if t)

    left = crew.run(tasks, ready)
    return left, crew.failures


def gather(arguments: argparse.Namespace, files, chosen: list) -> list:
    """What has been measured of what was asked for."""
    import json

    import document
    import heads
    from evaluate import Evaluation
    from files import Task
    from summary import Group, Measured

    groups = []
    for model in arguments.models.split(","):
        for text in arguments.texts.split(","):
            documents, study = [], None
            for number in range(arguments.documents):
                task = Task("study", model, text, number)
                found = {seed: parts for seed in range(1, arguments.seeds + 1) if (parts := results(arguments, files, chosen, task, seed))}
                if number == 0 and files.found(task):
                    study = json.loads(files.found(task).read_text())
                if 1 not in found:
                    continue
                measured = Measured.of(document.load(files.capture(task), light=True), heads.load_references(files.exact(task)))
                measured.evaluations = {seed: Evaluation.joined(map(Evaluation.load, parts)) for seed, parts in found.items()}
                documents.append(measured)
            if documents:
                groups.append(Group(model, text, documents, study))
    return groups


# ---- around them


def results(arguments: argparse.Namespace, files, chosen: list, task, seed: int) -> list[pathlib.Path]:
    """Of the parts of a seed; none where the first of them, which all comparisons want, is missing."""
    import settings
    from files import Task

    of = lambda part: files.found(Task("seed", task.model, task.text, task.number, seed, part))
    return [path for part in settings.parts(chosen, seed, seed <= arguments.other_seeds) if (path := of(part))] if of("core") else []


class daemon:
    """A private daemon, and a client of it."""

    def __init__(self, arguments: argparse.Namespace, pool: str):
        from private_daemon import PrivateDaemon

        self.private = PrivateDaemon(arguments.build / "magicpigd", pool_size=pool, instance="quality")

    def __enter__(self):
        import magicpig

        self.private.__enter__()
        try:
            self.client = magicpig.Client(str(self.private.socket), timeout_ms=60_000)
        except BaseException:
            self.private.stop()
            raise
        return self.client

    def __exit__(self, *exception) -> None:
        self.client.close()
        self.private.__exit__(*exception)


def device(arguments: argparse.Namespace) -> str:
    if arguments.device != "auto":
        return arguments.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def report_path(arguments: argparse.Namespace, kind: str) -> pathlib.Path:
    return arguments.build / "quality" / f"{'quick' if arguments.quick else 'report'}.{kind}"


def publish(arguments, groups: list, chosen: list, show: bool) -> dict:
    import page
    import report as reporting

    made = reporting.make(groups, chosen, machine())
    json, html = report_path(arguments, "json"), report_path(arguments, "html")
    reporting.write(made, json)
    output.write(html, page.make(made))
    if show:
        reporting.show(made)
        print(f"\nreport: {json}, {html}")
    return made


def machine() -> dict:
    info = pathlib.Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return {"CPU": names[0] if names else platform.machine(), "cores": len(os.sched_getaffinity(0)), "date": time.strftime("%Y-%m-%d")}


if __name__ == "__main__":
    sys.exit(main())
