import os
import pathlib
import sys

import pytest
import torch

torch.set_num_threads(1)  # the models are tiny, and the daemon needs a core too

TREE = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(TREE / "client-lib" / "python"), str(TREE / "tools" / "common"), str(pathlib.Path(__file__).parent)]
BUILD = pathlib.Path(os.environ.get("MAGICPIG_BUILD", TREE / "build")).resolve()
os.environ.setdefault("MAGICPIG_LIBRARY", str(BUILD / "libmagicpig.so.0"))

# The GPU's side: on a GPU where torch has one, else over a driver without a GPU, whose kernels run on the CPU and whose device memory is
# the host's, so that CPU tensors serve.
GPU = torch.cuda.is_available()
CUDA_LIBRARY = BUILD / "libmagicpig-cuda.so.0" if GPU else BUILD / "tests" / "gpu" / "fake" / "libmagicpig-cuda.so.0"
os.environ.setdefault("MAGICPIG_CUDA_LIBRARY", str(CUDA_LIBRARY))

from private_daemon import PrivateDaemon  # noqa: E402


@pytest.fixture(scope="session")
def start_daemon():
    """A function that makes a private daemon, to be started by `with`, by its instance's name and options of PrivateDaemon."""
    program = BUILD / "magicpigd"
    if not program.exists():
        pytest.skip(f"{program} is not built")
    return lambda instance, **options: PrivateDaemon(program, instance=instance, **options)


@pytest.fixture(scope="session")
def daemon_socket(start_daemon):
    """A private daemon for the session; its socket's path."""
    with start_daemon("pytest") as daemon:
        yield str(daemon.socket)


@pytest.fixture
def client(daemon):
    """A patient client of the module's own daemon, which has no contexts afterwards."""
    import magicpig

    with magicpig.Client(str(daemon.socket), reconnect_ms=60_000) as client:
        yield client
        for info in list(client.contexts()):
            client.drop(info.name)


@pytest.fixture(scope="session")
def device():
    """The torch device whose tensors the GPU's side takes."""
    if not pathlib.Path(os.environ["MAGICPIG_CUDA_LIBRARY"]).exists():
        pytest.skip(f"{os.environ['MAGICPIG_CUDA_LIBRARY']} is not built")
    return torch.device("cuda" if GPU else "cpu")


@pytest.fixture(scope="session")
def gpu_operators(device):
    """Over the driver without a GPU the operators take CPU tensors: the same functions under another key."""
    from magicpig import ops

    if device.type == "cuda":
        yield
        return
    library = torch.library.Library("magicpig", "IMPL")
    for name, kernel in ops.KERNELS.items():
        library.impl(name, kernel, "CPU")
    yield
    library._destroy()
