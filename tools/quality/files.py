"""What is kept below BUILD/quality, by name: captures, exact attention of each, and what was measured, by content."""

from __future__ import annotations

import os
import pathlib
from dataclasses import dataclass

import numpy as np

import document


@dataclass(frozen=True)
class Task:
    """One thing that a process does by itself. kind: capture, seed (a part of the settings, once; see settings.parts) or study."""

    kind: str
    model: str
    text: str
    number: int
    seed: int = 0
    part: str = ""

    @property
    def document(self) -> str:
        return f"{self.model}-{self.text}-{self.number}"

    def __str__(self) -> str:
        return f"{self.document}, " + (f"seed {self.seed}, {self.part}" if self.kind == "seed" else self.kind)


class Files:
    """settings: a string that changes with them; the daemon and the library are hashed here. kl: with whole-model KL."""

    def __init__(self, build: pathlib.Path, settings: str, *, kl: bool):
        self.folder, self.kl = build / "quality", kl
        self.engine = document.digest(*(build / name for name in ("magicpigd", "libmagicpig.so.0")), settings)
        self._digests: dict[str, str] = {}

    def capture(self, task: Task) -> pathlib.Path:
        return self.folder / "documents" / f"{task.document}.npz"

    def exact(self, task: Task) -> pathlib.Path:
        """Exact attention of a capture, and the capture's digest."""
        return self.folder / "documents" / f"{task.document}.exact.npz"

    def captured(self, task: Task) -> bool:
        paths = self.exact(task), self.capture(task)
        return all(path.exists() for path in paths) and os.path.getmtime(paths[0]) >= os.path.getmtime(paths[1])

    def answers(self, task: Task) -> pathlib.Path:
        if task.document not in self._digests:
            with np.load(self.exact(task), allow_pickle=False) as stored:
                self._digests[task.document] = stored["digest"].item()
        return self.folder / "answers" / f"{self._digests[task.document]}-{self.engine}"

    def result(self, task: Task) -> pathlib.Path:
        """Where a task's result goes."""
        if task.kind == "capture":
            return self.capture(task)
        if task.kind == "study":
            return self.answers(task) / "study.json"
        return self.answers(task) / self._name(task, self.kl)

    @staticmethod
    def _name(task: Task, kl: bool) -> str:
        return f"{task.seed}-{task.part}{'' if kl else '-heads'}.npz"

    def found(self, task: Task) -> pathlib.Path | None:
        """A result that says at least as much as is asked; None if there is none."""
        if not self.captured(task):
            return None
        names = [self.result(task).name] + ([self._name(task, True)] if task.kind == "seed" else [])
        return next((path for name in names if (path := self.result(task).with_name(name)).exists()), None)
