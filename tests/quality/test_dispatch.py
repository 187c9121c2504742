"""Tasks, what is kept of them, and the processes that do them."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

import dispatch
import document
import files
import heads
import settings
from conftest import BUILD, TREE
from files import Files, Task


@pytest.fixture
def build(tmp_path):
    if not (BUILD / "magicpigd").exists():
        pytest.skip("magicpigd is not built")
    for name in ("magicpigd", "libmagicpig.so.0"):
        shutil.copy(BUILD / name, tmp_path)
    return tmp_path


def put_fixture(build, texts=("facts",), numbers=(0,)):
    """The committed tensors, as if they had been captured; of other documents they are copies."""
    tensors = document.load(TREE / "tools/quality/fixture.npz")
    for text in texts:
        for number in numbers:
            document.save(dataclasses.replace(tensors, text=text, number=number), build / "quality" / "documents" / f"smollm2-{text}-{number}.npz")


def run(build, *arguments, **options):
    command = [sys.executable, TREE / "tools/quality/quality.py", "--build", build, "--models", "smollm2", "--texts", "facts", "--device", "cpu", *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL, **options)


def test_shares_of_cpus():
    assert dispatch.split_cpus(list(range(16)), 8) == [[2 * i, 2 * i + 1] for i in range(8)]
    assert dispatch.split_cpus([3, 5, 9], 2) == [[3], [5, 9]]
    assert dispatch.split_cpus([3, 5], 5) == [[3], [5], [3], [5], [3]]


def test_a_result_that_says_more_will_do(build):
    put_fixture(build)
    task = Task("seed", "smollm2", "facts", 0, 4, "core")
    everything, only_heads = Files(build, "s", kl=True), Files(build, "s", kl=False)
    assert everything.found(task) is None and not everything.captured(task)
    references = [heads.reference(document.load(everything.capture(task)), 0)]
    heads.save_references(references, everything.exact(task), digest="d")
    assert everything.captured(task) and everything.found(task) is None
    for store, other in ((everything, only_heads), (only_heads, everything)):
        path = store.result(task)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        assert store.found(task) == path and (other.found(task) == path) is (store is everything)
        path.unlink()
    assert Files(build, "other settings", kl=True).result(task) != everything.result(task)
    os.utime(everything.capture(task), (time.time() + 10,) * 2)
    assert not everything.captured(task)  # captured anew since


def test_references_survive_the_disk(tmp_path):
    tensors = document.load(TREE / "tools/quality/fixture.npz")
    own = [heads.reference(tensors, m) for m in range(2)]
    heads.save_references(own, tmp_path / "e.npz", digest="d")
    read = heads.load_references(tmp_path / "e.npz")
    assert [r.heavy for r in read] == [r.heavy for r in own] and any(any(q) for q in own[0].heavy)
    assert all(np.array_equal(getattr(a, n), getattr(b, n)) for a, b in zip(own, read) for n in ("out", "lse", "n_eff", "exact_out"))


def test_a_run_ends_when_told_and_goes_on(build):
    """Two processes, two documents, no model. First without time; then all of it; then nothing is left."""
    put_fixture(build, numbers=(0, 1))
    common = ("--documents", 2, "--seeds", 2, "--other-seeds", 1, "--probe-seeds", 1, "--no-kl", "--jobs", 2)
    plan = run(build, *common, "--plan")
    contexts = 2 * (len(settings.parts(settings.full(), 1, True)) - 1)
    assert plan.returncode == 0 and f"2 captures, 4 seeds, {contexts} contexts of other settings, 1 studies" in plan.stdout
    assert not (build / "quality/answers").exists()
    none = run(build, *common, "--minutes", 0)
    assert none.returncode == 3 and f"{7 + contexts} tasks are left" in none.stdout, none.stderr
    whole = run(build, *common)
    assert whole.returncode == 0, whole.stdout[-3000:] + whole.stderr[-3000:]
    again = run(build, *common)
    assert again.returncode == 0 and "0 captures, 0 seeds, 0 contexts of other settings, 0 studies" in again.stdout
    report = json.loads((build / "quality/report.json").read_text())
    lines = {line["setting"]: line for line in report["summary"]}
    assert lines[settings.DEFAULT]["seeds"] == 2 and lines["uniform 1 %"]["seeds"] == 1 and lines[settings.DEFAULT]["documents"] == 2
    assert [s["text"] for s in report["studies"]] == ["facts"] and len(report["studies"][0]["verified"]) == 6
    foreign = next(line for name, line in lines.items() if "another" in name)
    assert foreign["seeds"] == 1 and foreign["err"]["median"] > 0



def test_a_task_that_fails_is_told_and_the_others_are_done(build):
    put_fixture(build, numbers=(0,))
    (build / "quality/documents/smollm2-facts-1.npz").write_bytes(b"not an archive")
    done = run(build, "--documents", 2, "--seeds", 1, "--no-kl", "--jobs", 1)
    assert done.returncode == 1 and "smollm2-facts-1, capture" in done.stderr
    assert "tasks are left" in done.stdout  # what waits for it


def test_words_that_are_not_known(capsys):
    pytest.importorskip("torch")
    import quality as program

    for words in (("--models", "gpt"), ("--texts", "poems,prose")):
        assert program.full(program.parse([*words, "--device", "cpu"])) == 1
        assert words[1].split(",")[0] in capsys.readouterr().err
    for words in (("--jobs", "0"), ("--seeds", "0")):
        with pytest.raises(SystemExit):
            program.parse(list(words))
