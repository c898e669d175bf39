"""The first minutes: PCL against no pre-training, on the embedded phantom.

python -m pclseg.cli.demo --out=demo
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ARMS = ("scratch", "pcl")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit status of the first command that fails, or 0."""
    out = command_line().parse_args(argv).out
    start = time.monotonic()
    for number, (title, command) in enumerate(steps(out), start=1):
        print(f"\n[{number}/{len(steps(out))}] {title}", flush=True)
        print(f"    python -m {' '.join(command)}", flush=True)
        status, interrupted = finish(subprocess.Popen([sys.executable, "-m", *command]))
        if interrupted:
            print("interrupted; the same command goes on from there.")
            return 130
        if status:
            print(f"this step failed with exit code {status}; mend it and repeat it.")
            return status
    print(closing_words(out, time.monotonic() - start))
    return 0


def command_line() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m pclseg.cli.demo", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder (demo)")
    return parser


def finish(step: subprocess.Popen[bytes]) -> tuple[int, bool]:
    """Waits for a step: its exit status, and whether Ctrl-C came.

    A terminal sends Ctrl-C to the step too, which then saves; a second one ends that.
    """
    interrupted = False
    while True:
        try:
            return step.wait(), interrupted
        except KeyboardInterrupt:
            interrupted = True


def steps(out: Path) -> list[tuple[str, list[str]]]:
    """(title, arguments of python -m) of every step; each can be repeated alone."""
    places = [
        f"--config.data.raw_dir={out}/phantom",
        f"--config.data.store_dir={out}/prepared",
    ]
    runs = {arm: str(out / arm) for arm in ARMS}
    train = {
        arm: [
            "pclseg.main",
            f"--config=configs/{arm}_phantom.py",
            *places,
            f"--workdir={run}",
        ]
        for arm, run in runs.items()
    }
    predict = ["--images", f"{out}/phantom/images", f"--out={out}/predictions"]
    predict.append("--overwrite")  # the demo may be run again
    return [
        (
            "Check: write the phantom as NIfTI files and look at all of them",
            [
                "pclseg.cli.check",
                "--config=configs/pcl_phantom.py",
                places[0],
                f"--out={out}/check",
            ],
        ),
        (
            "Prepare: normalise the volumes, once for all runs",
            [*train["pcl"], "--stages=prepare"],
        ),
        (
            "Baseline: train on 2 labelled patients from random weights",
            train["scratch"],
        ),
        (
            "PCL: pre-train on all training patients without labels, then fine-tune on"
            " the same 2",
            train["pcl"],
        ),
        (
            "Predict all volumes, on their own grids, with the original label values",
            ["pclseg.cli.predict", f"--run={runs['pcl']}", *predict],
        ),
        (
            "Draw curves, cases and embeddings",
            ["pclseg.cli.figures", *runs.values(), f"--out={out}/figures"],
        ),
        ("Compare on the held-out patients", ["pclseg.cli.table", *runs.values()]),
        (
            "Put it all on one page",
            ["pclseg.cli.report", *runs.values(), f"--out={out}/report.html"],
        ),
    ]


def closing_words(out: Path, seconds: float) -> str:
    """Where everything is, and what to do next."""
    return f"""
Done in {seconds / 60:.1f} minutes.
  report       {out}/report.html: all of it on one page
  check        {out}/check/check.html: what the volumes are like
  figures      {out}/figures/*.png
  predictions  {out}/predictions/*.nii.gz, aligned with {out}/phantom/images
  per case     {out}/pcl/cases.csv, {out}/scratch/cases.csv
  settings     {out}/pcl/config.json

Use your own data:
  pclseg check DIR --images=scans --labels=masks
  pclseg init DIR --images=scans --labels=masks --out=mine.py
  pclseg train --config=mine.py --workdir=runs/mine
  pclseg predict --run=runs/mine --images 'DIR/new/*.nii.gz' --out=predicted"""


if __name__ == "__main__":
    sys.exit(main())
