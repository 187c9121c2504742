"""Attention by the GPU's side and the daemon, everything dense, against PyTorch's scaled_dot_product_attention over the same bf16 inputs.

    MAGICPIG_BUILD=build python client-lib/python/tests/parity.py [--limit 2e-3]

prints the largest error of each shape and ends with 1 if one is above the limit. SDPA runs in fp32: what differs is the rounding of the
output to bf16, and the order of sums. On a GPU where torch has one, else over the driver without a GPU of the tests."""

from __future__ import annotations

import argparse
import sys

if __name__ == "__main__":
    import conftest  # paths and libraries

from gpu_world import LAYOUTS, Shape, World, synchronize, worst

LIMIT = 2e-3
SHAPES = [
    *[Shape(d=d, heads=2 * group, kv_heads=2, layout=layout) for d in (64, 128, 256) for group in (1, 4, 8) for layout in LAYOUTS],
    *[Shape(heads=2 * group, kv_heads=2) for group in (2, 3, 5, 6, 7)],
    *[Shape(split=split, d=128, heads=8, layout=layout) for split in (4, 180, 300) for layout in LAYOUTS],
    Shape(contexts=4, d=128, heads=8, layout="paged"),
    Shape(contexts=2, tokens=4, d=128, heads=8, layout="ring"),
    Shape(committed=4000, split=3700, rows=4003, d=128, heads=8),
    Shape(heads=32, kv_heads=8, d=128, committed=1500, split=1400, rows=1510),
]


def error_of(client, device, shape: Shape) -> float:
    world = World(client, device, shape)
    try:
        with world.attention() as (attention, gpu):
            gpu.begin()
            out, _ = world.attend(attention)
            synchronize(device)
            gpu.check()
            return worst(out, world.expected()[0])
    finally:
        world.close()


def main() -> int:
    import torch
    from private_daemon import PrivateDaemon

    import magicpig
    from magicpig import cuda, ops

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=LIMIT)
    limit = parser.parse_args().limit
    why = cuda.available()
    if why:
        print(why, file=sys.stderr)
        return 2
    device = torch.device("cuda" if conftest.GPU else "cpu")
    torch.empty(1, device=device)
    library = torch.library.Library("magicpig", "IMPL")
    for name, kernel in ops.KERNELS.items() if device.type == "cpu" else ():
        library.impl(name, kernel, "CPU")
    most, failed = 0.0, 0
    with PrivateDaemon(conftest.BUILD / "magicpigd", instance="parity") as daemon, magicpig.Client(str(daemon.socket)) as client:
        with client.queue() as queue, cuda.Gpu(queue) as gpu:
            print(f"{gpu.info.device}; torch {torch.__version__}; largest error of {len(SHAPES)} shapes against SDPA:")
        for shape in SHAPES:
            error = error_of(client, device, shape)
            good = error <= limit  # NaN is not
            most, failed = max(most, error), failed + (not good)
            print(f"  {error:.2e}  {shape}{'' if good else '   above the limit'}")
    print(f"at most {most:.2e}, limit {limit:.0e}: {f'{failed} above it' if failed else 'all within it'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
