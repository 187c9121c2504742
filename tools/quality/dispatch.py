"""Tasks on several processes, each with a private daemon of its own on CPUs of its own."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field

import numpy as np

import document
import heads
import settings as table
from files import Files, Task
from private_daemon import PrivateDaemon, dies_with_parent


@dataclass(frozen=True)
class Work:
    """What a worker has to know; travels to it by pickling."""

    build: pathlib.Path
    settings: list
    kl: bool
    other_seeds: int
    probe_seeds: int
    documents: int
    device: str

    def files(self) -> Files:
        return Files(self.build, repr(self.settings), kl=self.kl)


# ---- in a worker


class Worker:
    def __init__(self, work: Work, cpus: list[int], say):
        self.work, self.cpus, self.say, self.files = work, cpus, say, work.files()
        self._daemon: tuple | None = None  # (PrivateDaemon, Client, bytes of its pool)
        self._models: dict = {}  # by the function that loads it

    def perform(self, task: Task) -> None:
        {"capture": self._capture, "seed": self._seed, "study": self._study}[task.kind](task)

    def close(self) -> None:
        if self._daemon is not None:
            private, client, _ = self._daemon
            self._daemon = None
            client.close()
            private.__exit__()

    def _capture(self, task: Task) -> None:
        path = self.files.capture(task)
        if not path.exists():
            import capture
            import models

            self._threads(len(self.cpus))
            context = models.KINDS[task.model].context
            tensors = capture.capture(task.model, task.text, task.number, self._loaded(task.model), context, self.files.folder, self.say)
            document.save(tensors, path)
        tensors = document.load(path)
        references = [heads.reference(tensors, m) for m in range(len(tensors.measured))]
        heads.save_references(references, self.files.exact(task), digest=document.digest(path))

    def _seed(self, task: Task) -> None:
        from evaluate import evaluate

        tensors, references = self._tensors(task)
        run = None
        if self.work.kl:
            import whole_model

            self._threads(max(1, len(self.cpus) - 1))  # one belongs to the daemon: idle threads of torch spin
            run = whole_model.ModelRun(self._loaded(task.model)[0], self.say)
        wanted = table.parts(self.work.settings, task.seed, task.seed <= self.work.other_seeds)[task.part]
        done = evaluate(
            self._client(tensors), tensors, references, wanted, task.seed, probe=task.seed <= self.work.probe_seeds, model_run=run, say=self.say,
            foreign=self._foreign(task),
        )
        done.save(self.files.result(task))

    def _study(self, task: Task) -> None:
        import output
        import studies

        tensors, references = self._tensors(task)
        found = studies.study(self._client(tensors), tensors, references, self.say)
        output.write(self.files.result(task), json.dumps(found))

    def _tensors(self, task: Task) -> tuple:
        return document.load(self.files.capture(task)), heads.load_references(self.files.exact(task))

    def _foreign(self, task: Task) -> np.ndarray | None:
        """The last queries of the next document of the same kind."""
        import models

        other = other_document(task, min(self.work.documents, models.KINDS[task.model].documents))
        if other is None:
            return None
        with np.load(self.files.capture(other), allow_pickle=False) as stored:
            return stored["recent"]

    def _loaded(self, name: str) -> tuple:
        import models

        load = models.KINDS[name].load
        if load not in self._models:
            self._models[load] = models.load(name, self.work.build, self.work.device)
        return self._models[load]

    @staticmethod
    def _threads(count: int) -> None:
        import torch

        torch.set_num_threads(count)

    def _client(self, tensors: document.Document):
        import magicpig

        wanted = pool_bytes(tensors, self.work.settings)
        if self._daemon is not None and self._daemon[2] < wanted:
            self.close()
        if self._daemon is None:
            cpus = self.cpus[1:] or self.cpus  # the first is the client's
            private = PrivateDaemon(
                self.work.build / "magicpigd", pool_size=f"{wanted >> 20}M", instance=f"quality-{os.getpid()}", cpus=",".join(map(str, cpus))
            )
            private.__enter__()
            try:
                client = magicpig.Client(str(private.socket), timeout_ms=60_000)
            except BaseException:
                private.stop()
                raise
            self._daemon = private, client, wanted
        return self._daemon[1]


def other_document(task: Task, documents: int) -> Task | None:
    return Task("capture", task.model, task.text, (task.number + 1) % documents) if documents > 1 else None


def pool_bytes(tensors: document.Document, settings: list) -> int:
    """What the largest context takes, with room for the allocator: a limit, not a reservation."""
    layers, rows, kv_heads, _ = tensors.k.shape
    strips = len(tensors.measured) * kv_heads
    tables = max(l * (2 * rows + (8 << (k or 9))) for k, l in {s.paper for s in settings})
    plain = tensors.k.nbytes + tensors.v.nbytes
    probe = strips * rows * 2 * (tensors.k.shape[3] + heads.Probe.D_V)
    return max(plain, probe) * 3 // 2 + strips * (tables + rows * tensors.k.shape[3]) * 3 // 2 + (512 << 20)


def _serve(work: Work, cpus: list[int], pipe) -> None:
    dies_with_parent(signal.SIGTERM)()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the daemon is stopped
    os.environ["MAGICPIG_LIBRARY"] = str(work.build / "libmagicpig.so.0")
    worker = Worker(work, cpus, lambda text: pipe.send(("say", text)))
    try:
        while (task := pipe.recv()) is not None:
            try:
                worker.perform(task)
                pipe.send(("done", None))
            except Exception:
                pipe.send(("failed", traceback.format_exc()))
    except (EOFError, BrokenPipeError):
        pass  # whoever asked is gone
    finally:
        worker.close()


# ---- in the process that hands them out


@dataclass
class _Hand:
    process: multiprocessing.Process
    pipe: multiprocessing.connection.Connection
    task: Task | None = None
    begin: float = 0.0


@dataclass
class Dispatcher:
    """Gives each idle process the first task that is ready. deadline: a time.monotonic(); nothing is begun that would probably outlast it, and
    what is still running then is ended. progress: see quality.Progress."""

    work: Work
    jobs: int
    deadline: float
    progress: object
    failures: list[str] = field(default_factory=list)
    seconds: dict[tuple, list[float]] = field(default_factory=dict)

    def run(self, tasks: list[Task], ready, after=lambda: None) -> list[Task]:
        """What was left undone. after(): called now and then, when something was done."""
        pending, hands = list(tasks), []
        shares = split_cpus(sorted(os.sched_getaffinity(0)), self.jobs)
        try:
            while pending or any(hand.task for hand in hands):
                self._hand_out(pending, hands, shares, ready)
                busy = [hand for hand in hands if hand.task]
                if not busy or time.monotonic() >= self.deadline:
                    break
                for pipe in multiprocessing.connection.wait([hand.pipe for hand in busy], timeout=1):
                    self._hear(next(hand for hand in busy if hand.pipe is pipe))
                after()
            return pending + [hand.task for hand in hands if hand.task]
        finally:
            for hand in hands:
                if hand.task:
                    hand.process.terminate()
            for hand in hands:
                self._end(hand)

    def _hand_out(self, pending: list[Task], hands: list[_Hand], shares: list[list[int]], ready) -> None:
        hands[:] = [hand for hand in hands if hand.task or hand.process.is_alive()]
        while pending:
            task = next((t for t in pending if ready(t) and self._in_time(t)), None)
            idle = next((hand for hand in hands if not hand.task), None)
            if task is None or (idle is None and len(hands) == self.jobs):
                return
            if idle is None:
                idle = self._start(shares[len(hands)])
                hands.append(idle)
            pending.remove(task)
            idle.task, idle.begin = task, time.monotonic()
            idle.pipe.send(task)

    def _in_time(self, task: Task) -> bool:
        before = self.seconds.get(_sort(task))
        return time.monotonic() + (1.2 * float(np.mean(before[-20:])) if before else 0) < self.deadline

    def _start(self, cpus: list[int]) -> _Hand:
        spawn = multiprocessing.get_context("spawn")  # a fork would share the GPU's state
        pipe, theirs = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(self.work, cpus, theirs))
        os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(len(cpus))))  # read as it imports numpy
        process.start()
        theirs.close()
        return _Hand(process, pipe)

    def _hear(self, hand: _Hand) -> None:
        try:
            what, text = hand.pipe.recv()
        except (EOFError, OSError):
            what, text = "failed", f"its process ended with status {hand.process.exitcode}"
            hand.process.join(5)
        if what == "say":
            if self.jobs == 1:
                self.progress.say(f"{hand.task}: {text}")
            return
        passed = time.monotonic() - hand.begin
        if what == "failed":
            self.failures.append(f"{hand.task}: {text}")
            print(f"quality: {hand.task}: {text}", file=sys.stderr)
        self.seconds.setdefault(_sort(hand.task), []).append(passed)
        self.progress.finish(f"{hand.task}, {passed:.0f} s")
        hand.task = None

    @staticmethod
    def _end(hand: _Hand) -> None:
        try:
            hand.pipe.send(None)
        except OSError:
            pass
        hand.process.join(30)
        if hand.process.is_alive():
            hand.process.kill()
            hand.process.join()


def _sort(task: Task) -> tuple:
    """Tasks of one sort take about as long."""
    return task.kind, task.model, task.part


def split_cpus(cpus: list[int], jobs: int) -> list[list[int]]:
    """Shares as equal as can be, each of at least one CPU; some have the same where there are fewer than jobs."""
    if jobs >= len(cpus):
        return [[cpus[i % len(cpus)]] for i in range(jobs)]
    bounds = [len(cpus) * i // jobs for i in range(jobs + 1)]
    return [cpus[a:b] for a, b in zip(bounds, bounds[1:])]
