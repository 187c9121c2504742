"""Reports of the tools: checked before the work, whole or not at all, and what was there stays when they fail."""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys

import output
import pytest

TOOLS = pathlib.Path(__file__).resolve().parents[2] / "tools"


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "new folder" / "report"
    output.check(path)
    assert list(path.parent.iterdir()) == []
    output.write(path, "one")
    os.chmod(path, 0o604)
    output.check(path)
    assert path.read_text() == "one"
    output.write(path, "two")
    assert path.read_text() == "two" and path.stat().st_mode & 0o777 == 0o604
    assert list(path.parent.iterdir()) == [path]


def test_what_was_there_stays_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "report"
    path.write_text("old")

    def fails(*arguments):
        raise OSError(28, "No space left on device")

    for call in ("replace", "fsync"):
        with monkeypatch.context() as patched:
            patched.setattr(os, call, fails)
            with pytest.raises(OSError, match="No space left"):
                output.write(path, "new")
        assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_links_and_pipes(tmp_path):
    (tmp_path / "link").symlink_to("report")
    output.write(tmp_path / "link", "one")
    assert (tmp_path / "report").read_text() == "one" and (tmp_path / "link").is_symlink()
    read, write = os.pipe()
    output.check(pathlib.Path(f"/proc/self/fd/{write}"))
    output.write(pathlib.Path(f"/proc/self/fd/{write}"), "through")
    assert os.read(read, 16) == b"through"
    os.close(read)
    os.close(write)


def test_what_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "report", pathlib.Path("/proc/nowhere/report")):
        with pytest.raises(OSError):
            output.check(path)
        with pytest.raises(argparse.ArgumentTypeError, match=str(path)):
            output.argument(str(path))
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("tool", ["quality/speed.py x.npz --json {}/report", "quality/quality.py --quick --build {}", "demo/demo.py --build {}"])
def test_tools_say_so_before_they_begin(tmp_path, tool):
    bad = tmp_path / "build"
    bad.mkdir()
    for name in ("magicpigd", "magicpigctl", "libmagicpig.so.0", "quality", "demo", "report/x"):
        (bad / name).parent.mkdir(exist_ok=True)
        (bad / name).write_text("")
    script, *arguments = tool.format(bad).split()
    done = subprocess.run([sys.executable, TOOLS / script, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2) and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith((f"{pathlib.Path(script).stem}: cannot write {bad}", "speed.py: error: argument --json: "))
