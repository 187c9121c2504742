"""make quality: the daemon's own answers on tensors of real models, against full attention.

    python tools/quality/quality.py --build build --quick           the committed fixture: heads only, minutes
    python tools/quality/quality.py --build build --models smollm2  everything: captures, heads, whole-model KL; hours

Writes BUILD/quality/report.json and report.html (with --quick: quick.json, quick.html) and prints tables. What a model computed and
what the daemon answered is cached below BUILD/quality, by content; an interrupted run goes on where it was. Exits 2 with --quick if a
threshold is passed."""

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
FIXTURE = TREE / "tools" / "quality" / "fixture.npz"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--build", type=pathlib.Path, default=TREE / "build", help="where magicpigd was built")
    parser.add_argument("--quick", action="store_true", help="the committed fixture only; no model")
    parser.add_argument("--models", default="smollm2,gemma", help="of smollm2, gemma")
    parser.add_argument("--texts", default="prose,code,facts,words", help="of prose, code, facts, words")
    parser.add_argument("--documents", type=int, default=4, help="of each text; two blocks of 64 tokens are scored in each")
    parser.add_argument("--seeds", type=int, default=10, help="rotations, tables and draws are made anew for each")
    parser.add_argument("--probe-seeds", type=int, default=3, help="of these, how many also look which heavy rows were read")
    parser.add_argument("--no-kl", action="store_true", help="heads only")
    chosen = parser.parse_args(arguments)
    if min(chosen.documents, chosen.seeds) < 1:
        parser.error("--documents and --seeds begin at 1")
    chosen.build = chosen.build.resolve()
    return chosen


class Progress:
    """One line per step, with the time left as the steps so far suggest; cached ones do not count."""

    def __init__(self, steps: int):
        self.steps, self.done, self.fresh, self.begin = steps, 0, 0, time.monotonic()
        self.what = ""

    def start(self, what: str) -> None:
        self.what = what
        self.say("")

    def say(self, detail: str) -> None:
        passed = time.monotonic() - self.begin
        left = f", about {passed / self.fresh * (self.steps - self.done) / 60:.0f} min left" if self.fresh else ""
        line = f"[{self.done}/{self.steps}, {passed / 60:.1f} min{left}] {self.what}{': ' if detail else ''}{detail}"
        print(f"\r\033[K{line[:150]}" if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n", flush=True)

    def finish(self, fresh: bool) -> None:
        self.done += 1
        self.fresh += fresh
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
        return quick(arguments) if arguments.quick else full(arguments)
    except KeyboardInterrupt:
        print("\nquality: interrupted; what was done is kept", file=sys.stderr)
        return 130


# ---- the two modes


def quick(arguments: argparse.Namespace) -> int:
    import document
    import settings
    import thresholds
    from summary import Group

    seeds, progress = min(arguments.seeds, 4), Progress(min(arguments.seeds, 4))
    with daemon(arguments, "512M") as client:
        tensors = document.load(FIXTURE)
        measured = measure(client, tensors, settings.quick(), range(1, seeds + 1), seeds, None, None, progress)
        bias = thresholds.mass_bias(client, tensors)
    report = publish(arguments, "quick", [Group(tensors.model, tensors.text, [measured])], settings.quick(), bias)
    return 0 if thresholds.show(report) else 2


def full(arguments: argparse.Namespace) -> int:
    import models
    import settings
    from summary import Group

    chosen = settings.full()
    names, texts = arguments.models.split(","), arguments.texts.split(",")
    unknown = set(names) - set(models.KINDS)
    if unknown:
        print(f"quality: no model {', '.join(sorted(unknown))}", file=sys.stderr)
        return 1
    progress, groups = Progress(len(names) * len(texts) * arguments.documents * (1 + arguments.seeds)), []
    with daemon(arguments, "6G") as client:
        for name in names:
            loaded = Loaded(arguments, name)
            for text in texts:
                documents = [one_document(arguments, client, loaded, text, number, chosen, progress) for number in range(arguments.documents)]
                groups.append(Group(name, text, documents))
                publish(arguments, "report", groups, chosen, None)  # what there is so far
    publish(arguments, "report", groups, chosen, None, show=True)
    return 0


class Loaded:
    """A model, loaded when first needed: a run from the cache never is."""

    def __init__(self, arguments: argparse.Namespace, name: str):
        self.arguments, self.name, self._loaded = arguments, name, None

    def __call__(self) -> tuple:
        import models

        if self._loaded is None:
            self._loaded = models.KINDS[self.name].load(self.arguments.build)
        return self._loaded


def one_document(arguments, client, loaded: Loaded, text: str, number: int, chosen: list, progress: Progress):
    import capture
    import document
    import models

    path = arguments.build / "quality" / "documents" / f"{loaded.name}-{text}-{number}.npz"
    progress.start(path.stem)
    fresh = not path.exists()
    if fresh:
        context = models.KINDS[loaded.name].context
        tensors = capture.capture(loaded.name, text, number, loaded(), context, arguments.build / "quality", progress.say)
        document.save(tensors, path)
    else:
        tensors = document.load(path)
    progress.finish(fresh)

    def model_run():
        import whole_model

        return whole_model.ModelRun(loaded()[0], progress.say)

    names = f"{document.digest(path)}-{document.digest(*(arguments.build / n for n in ('magicpigd', 'libmagicpig.so.0')), repr(chosen))}"
    cache = arguments.build / "quality" / "answers" / names
    seeds = range(1, arguments.seeds + 1)
    return measure(client, tensors, chosen, seeds, arguments.probe_seeds, cache, None if arguments.no_kl else model_run, progress)


def measure(client, tensors, chosen: list, seeds: range, probe_seeds: int, cache: pathlib.Path | None, model_run, progress: Progress):
    """All seeds of one document; `cache`: a folder for what was measured."""
    import heads
    from evaluate import Evaluation, evaluate
    from summary import Measured

    names = {seed: None if cache is None else cache / f"{seed}{'' if model_run else '-heads'}.npz" for seed in seeds}
    exact = None if cache is None else cache / "exact.npz"
    references, ready = None, None
    if exact is None or not all(path.exists() for path in (exact, *names.values())):
        references = [heads.reference(tensors, m) for m in range(len(tensors.measured))]
    measured = Measured.of(tensors, references, exact)
    for seed in seeds:
        progress.start(f"{tensors.name}, seed {seed}")
        path = names[seed]
        fresh = path is None or not path.exists()
        if fresh:
            ready = ready or (model_run() if model_run else None)
            done = evaluate(
                client, tensors, references, chosen, seed, first=seed == seeds[0], probe=seed <= probe_seeds, model_run=ready, say=progress.say
            )
            if path is not None:
                done.save(path)
        else:
            done = Evaluation.load(path)
        measured.evaluations[seed] = done
        progress.finish(fresh)
    for light in (tensors, measured.document):
        light.logits = None
    return measured


# ---- around them


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


def publish(arguments, name: str, groups: list, chosen: list, more: dict | None, show: bool | None = None) -> dict:
    import page
    import report as reporting

    made = reporting.make(groups, chosen, machine())
    made |= more or {}
    folder = arguments.build / "quality"
    reporting.write(made, folder / f"{name}.json")
    (folder / f"{name}.html").write_text(page.make(made), encoding="utf-8")
    if show or (show is None and arguments.quick):
        reporting.show(made)
        print(f"\nreport: {folder / name}.json, {folder / name}.html")
    return made


def machine() -> dict:
    info = pathlib.Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return {"CPU": names[0] if names else platform.machine(), "cores": len(os.sched_getaffinity(0)), "date": time.strftime("%Y-%m-%d")}


if __name__ == "__main__":
    sys.exit(main())
