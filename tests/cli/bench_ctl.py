"""How long magicpigctl takes: status, ls with 10,000 contexts, health, metrics. Run by hand:

    build/venv/bin/python tests/cli/bench_ctl.py [CONTEXTS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import cli_daemon

REPETITIONS = 41


def milliseconds(daemon: cli_daemon.Daemon, *arguments: str) -> list[float]:
    times = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        subprocess.run([cli_daemon.MAGICPIGCTL, "--socket", str(daemon.socket), *arguments], stdout=subprocess.DEVNULL, check=True)
        times.append(1000 * (time.perf_counter() - start))
    return times


def main(contexts: int) -> None:
    cli_daemon.CONFIG = cli_daemon.CONFIG.replace("size = 64M", "size = 1G") + "[limits]\ncontexts_per_uid = 0\n"
    daemon = cli_daemon.Daemon()
    try:
        import magicpig

        layer = magicpig.Layer(query_heads=8, kv_heads=2, d_k=64, signature_bits=2)
        with magicpig.Client(str(daemon.socket)) as client:
            for number in range(contexts):
                client.create(f"context-{number:05d}", magicpig.Spec([layer])).close()
        print(f"{contexts} contexts; ms of {REPETITIONS} runs, the process's start included")
        for arguments in (["status"], ["ls"], ["ls", "--json"], ["ls", "--names"], ["health"], ["metrics"], ["version", "--client"]):
            times = milliseconds(daemon, *arguments)
            print(f"{' '.join(arguments):18} median {statistics.median(times):7.2f}  least {min(times):7.2f}  most {max(times):7.2f}")
    finally:
        daemon.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10000)
