#!/usr/bin/env python3
"""Runs pclseg.main as several processes on this machine, for tests and debugging.

launch/local_multiprocess.py --processes 2 --devices 2 [--dry-run] -- --config=... \
    --workdir=...

Each process sees so many virtual CPU devices. The exit code is that of the first one
that failed; the others are then ended.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import time


def main(argv: list[str]) -> int:
    """Starts the processes and waits; returns the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=2, help="of each process")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument("arguments", nargs="+", help="after --: those of pclseg.main")
    args = parser.parse_args(argv)
    port = 1234 if args.dry_run else free_port()
    commands = [
        [sys.executable, "-m", "pclseg.main", *args.arguments]
        + [f"--coordinator=127.0.0.1:{port}"]
        + [f"--processes={args.processes}", f"--process={number}"]
        for number in range(args.processes)
    ]
    flags = f"--xla_force_host_platform_device_count={args.devices}"
    if args.dry_run:
        for command in commands:
            line = f"XLA_FLAGS={flags} JAX_PLATFORMS=cpu {shlex.join(command)}\n"
            sys.stdout.write(line)
        return 0
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    # In sessions of their own, or Ctrl-C would reach each of them twice.
    return wait(
        [subprocess.Popen(c, env=environment, start_new_session=True) for c in commands]
    )


def wait(running: list[subprocess.Popen]) -> int:
    """Passes SIGTERM and Ctrl-C on to all; ends the rest where one fails."""

    def pass_on(number: int, frame: object) -> None:
        del frame
        for process in running:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    while True:
        codes = [process.poll() for process in running]
        failed = [code for code in codes if code]
        if failed:
            end(running)
            return failed[0]
        if None not in codes:
            return 0
        time.sleep(0.1)


def end(running: list[subprocess.Popen]) -> None:
    """Lets the processes say why they end, then ends them."""
    deadline = time.monotonic() + 10
    for process in running:
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()  # in a collective no other signal is heard


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
