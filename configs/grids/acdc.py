r"""The study of docs/results.md on ACDC at `size=cpu`: every arm, 5 folds.

python -m pclseg.cli.grid configs/grids/acdc.py --out=runs/acdc --jobs=2 \
    --set=data.raw_dir=data/ACDC

The budgets are those of the configs: 600 steps of pre-training, 1500 of fine-tuning,
and so is the fine-tuning rate, which was chosen for `scratch`: tuning would double the
work. For the sizes of the paper, where it is tuned: configs/grids/acdc.py:size=paper.
"""

import ml_collections

from pclseg.config import parse_arg

ARMS = (
    "scratch",
    "pcl",
    "simclr",
    "gcl",
    "gcl_proper",
    "rotation",
    "pirl",
    "mixup",
    "tcsm",
    "pcl_tcsm",
)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The grid; `arg` is size=cpu|paper."""
    given = parse_arg(arg, size="cpu")
    config = ml_collections.ConfigDict()
    config.arms = tuple(f"configs/{arm}_acdc.py" for arm in ARMS)
    config.argument = f"size={given.size}"
    config.labelled = (2, 6, 10, 0)  # 0: all
    config.folds = (0, 1, 2, 3, 4)
    config.seeds = (0,)
    config.settings = ("evaluate.grid=prepared",)  # as docs/results.md
    # Every arm tries the same rates on patients of the training side of fold 0.
    config.tune = dict(
        key="finetune.optimizer.peak_lr",
        candidates=(1e-3, 3e-3) if given.size == "paper" else (),
        labelled=(2,),
        fold=0,
        seed=0,
        holdout=10,
    )
    return config
