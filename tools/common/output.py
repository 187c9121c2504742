"""Files in which a tool leaves what it has worked on for minutes: that they can be written is known before the work, and a file that was there
stays until the new one is whole."""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import tempfile


def check(path: pathlib.Path) -> None:
    """Raises OSError if `write` could not write this now. Makes the folder; touches nothing else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(21, os.strerror(21), str(path))
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(13, os.strerror(13), str(path))
    if not path.exists() or path.is_file():
        with tempfile.NamedTemporaryFile(dir=path.resolve().parent, prefix=f".{path.name}."):
            pass


def argument(text: str) -> pathlib.Path:
    """The type of an argument that names such a file: argparse then says what is wrong with it before anything has begun."""
    path = pathlib.Path(text)
    try:
        check(path)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from error
    return path


def write(path: pathlib.Path, text: str) -> None:
    """Writes beside the file, then renames. What is no regular file (a pipe, /dev/stdout) is written to as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    target = path.resolve()
    descriptor, fresh = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:200]}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
            os.fchmod(out.fileno(), target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
        os.replace(fresh, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
