"""The bindings against the header: a C program prints what the compiler thinks of every struct and constant."""

import ctypes
import os
import pathlib
import re
import shlex
import subprocess

import pytest

from magicpig import _cuda, _lib, errors, records
from magicpig.arrays import DTYPE_CODES

TREE = pathlib.Path(__file__).resolve().parents[3]
HEADER = TREE / "client-lib" / "include" / "magicpig.h"
CUDA_HEADER = TREE / "cuda" / "include" / "magicpig_cuda.h"
BOTH = pytest.mark.parametrize("bindings, header", [(_lib, HEADER), (_cuda, CUDA_HEADER)], ids=["magicpig", "magicpig_cuda"])


def compile_and_run(tmp_path, body, header=HEADER):
    source, program = tmp_path / "p.c", tmp_path / "p"
    source.write_text(f'#include <{header.name}>\n#include <stdio.h>\nint main(void)\n{{\n{body}\n\treturn 0;\n}}\n')
    compiler = shlex.split(os.environ.get("CC", "cc"))
    subprocess.run([*compiler, "-I", HEADER.parent, "-I", header.parent, "-o", program, source], check=True)
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()


@BOTH
def test_structs_match_the_header(tmp_path, bindings, header):
    lines, expected = [], []
    for name, struct in bindings.STRUCTS.items():
        lines.append(f'printf("%zu\\n", sizeof(struct {name}));')
        expected.append(ctypes.sizeof(struct))
        for field, _ in struct._fields_:
            lines.append(f'printf("%zu\\n", offsetof(struct {name}, {field}));')
            expected.append(getattr(struct, field).offset)
    assert [int(x) for x in compile_and_run(tmp_path, "\n".join(lines), header)] == expected


@BOTH
def test_every_struct_and_function_is_bound(bindings, header):
    text = header.read_text()
    assert set(re.findall(r"^struct (mpig_\w+) \{", text, re.M)) == set(bindings.STRUCTS)
    assert set(re.findall(r"MPIG_API[^;(]*?\b(mpig_\w+)\(", text)) == set(bindings.FUNCTIONS)


def test_constants_match_the_header(tmp_path):
    names = {f"MPIG_PROPOSAL_{name.upper()}": code for name, code in records.PROPOSALS.items()}
    names |= {f"MPIG_LAYER_{name.upper()}": code for name, code in records.LAYER_KINDS.items()}
    names |= {f"MPIG_{name.upper()}": code for name, code in DTYPE_CODES.items()}
    names["MPIG_COMMIT_SEAL"] = records.COMMIT_SEAL
    names["MPIG_VERSION_MAJOR"], names["MPIG_VERSION_MINOR"] = _lib.VERSION
    out = compile_and_run(tmp_path, "\n".join(f'printf("%d\\n", {name});' for name in names))
    assert dict(zip(names, map(int, out))) == names
    names = {"MPIG_CUDA_LSE2": _cuda.LSE2, "MPIG_CUDA_DAEMON_ONLY": _cuda.DAEMON_ONLY}
    out = compile_and_run(tmp_path, "\n".join(f'printf("%d\\n", {name});' for name in names), CUDA_HEADER)
    assert dict(zip(names, map(int, out))) == names


def test_one_exception_per_status():
    codes = dict(re.findall(r"\bMPIG_(E\w+) = (-\d+)", HEADER.read_text()))
    assert sorted(map(int, codes.values())) == sorted(errors.BY_STATUS)
    library = _lib.library()
    for status, cls in errors.BY_STATUS.items():
        text = library.mpig_strerror(status).decode()
        assert text.split(";")[0].split(" (")[0].startswith(cls.__doc__.split(";")[0][:20])
        assert errors.make(status, "x").status == status
    assert errors.make(-999, "x").status == -999


def test_version_and_missing_library(tmp_path):
    assert _lib.library().mpig_version().decode().startswith("0.1.")
    with pytest.raises(ImportError, match="MAGICPIG_LIBRARY"):
        _lib.load(str(tmp_path / "libmagicpig.so.0"))
    with pytest.raises(ImportError, match="MAGICPIG_CUDA_LIBRARY.*nvcc.*no such file"):
        _cuda.load(str(tmp_path / "libmagicpig-cuda.so.0"))
    with pytest.raises(ImportError, match="does not fit"):
        _cuda.load(os.environ["MAGICPIG_LIBRARY"])
