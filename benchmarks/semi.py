"""A training step of every stage of ACTION and its kin against a supervised one.

python benchmarks/semi.py [--size cpu|paper] [--out FILE]

Configs are those of ACDC at that size; every stage has the batch of its config. All in
one process, in turns; medians. `held` is the most memory of a step as the compiler
plans it: state and batch before and after, which share what is donated, and temporary.
"""

import argparse
import sys
from typing import Any

import jax
import measuring
import numpy as np
import step

from pclseg.config import load_config

# What is measured: file of a config, stage, and a sampler where it is not the config's.
STAGES = (
    ("ssl4mis_scratch", "finetune", ""),
    ("ssl4mis_mean_teacher", "finetune", ""),
    ("action", "pretrain", ""),
    ("action", "local", ""),
    ("action", "finetune", ""),
    ("action_pp", "finetune", ""),
    ("mona", "finetune", ""),
    ("arco", "finetune", ""),
    ("arco", "finetune", "antithetic"),
    ("arco_paper", "finetune", ""),
)
CLASSES = 4


def main(argv: list[str]) -> None:
    """Measures, prints a table, and writes the numbers where asked."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--size", choices=("cpu", "paper"), default="cpu")
    parser.add_argument("--steps", type=int, default=4, help="of a measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="arms with one of these in the name")
    measuring.add_out(parser)
    args = parser.parse_args(argv)
    ways, held = {}, {}
    for arm, stage, sampler in STAGES:
        name = ", ".join(text for text in (arm, stage, sampler) if text)
        if args.only and not any(text in name for text in args.only):
            continue
        measuring.tell(f"compiling {name}")
        config = load_config(f"configs/{arm}_acdc.py:size={args.size}")[stage]
        if sampler:
            config.method.sampler = sampler
        ways[name], compiled = step.steps_on(
            jax.devices()[:1], config, example(config), args.steps
        )
        held[name] = peak_mib(compiled.memory_analysis())
    seconds = measuring.in_turns(ways, repeats=args.repeats)
    first = next(iter(seconds.values()))
    rows = [
        {
            "way": name,
            "step_ms": 1e3 * value / args.steps,
            "of_supervised": value / first,
            "held_mib": held[name],
        }
        for name, value in seconds.items()
    ]
    head = ["stage", "step, ms", "of the first", "held, MiB"]
    print(
        measuring.table(
            head,
            [
                [
                    row["way"],
                    f"{row['step_ms']:.0f}",
                    f"{row['of_supervised']:.2f}",
                    f"{row['held_mib']:.0f}",
                ]
                for row in rows
            ],
        )
    )
    measuring.save(args.out, {"size": args.size, "rows": rows})


def peak_mib(plan: Any) -> float:
    """All that a compiled step holds; NaN where the compiler says nothing."""
    if not plan:
        return float("nan")
    lives = plan.argument_size_in_bytes + plan.output_size_in_bytes
    lives += plan.temp_size_in_bytes - plan.alias_size_in_bytes
    return lives / 2**20


def example(config: Any) -> dict[str, np.ndarray]:
    """A batch of noise of the sizes of a stage."""
    rng = np.random.default_rng(0)
    size, rows = config.data.crop_size, config.data.batch_size
    more = config.data.unlabelled_batch_size or rows
    return {
        "image": rng.normal(size=(rows, *size, 1)).astype(np.float32),
        "label": rng.integers(0, CLASSES, (rows, *size)).astype(np.int32),
        "unlabelled_image": rng.normal(size=(more, *size, 1)).astype(np.float32),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
