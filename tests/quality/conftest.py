import os
import pathlib
import sys

TREE = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("MAGICPIG_BUILD", TREE / "build")).resolve()
sys.path[:0] = [str(TREE / part) for part in ("client-lib/python", "tools/common", "tools/quality")]
os.environ.setdefault("MAGICPIG_LIBRARY", str(BUILD / "libmagicpig.so.0"))
