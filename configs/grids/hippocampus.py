r"""The study of docs/results.md on MSD Task04 Hippocampus.

python -m pclseg.cli.grid configs/grids/hippocampus.py --out=runs/study \
    --set=data.raw_dir=DIR

Sized for two CPU cores: 500 steps of pre-training and 600 of fine-tuning for every arm.
"""

import ml_collections


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The grid; it takes no argument."""
    del arg
    config = ml_collections.ConfigDict()
    config.arms = tuple(
        f"configs/{arm}_hippocampus.py" for arm in ("scratch", "simclr", "gcl", "pcl")
    )
    config.argument = ""
    config.labelled = (2, 6, 10, 0)  # 0: all
    config.folds = (0, 1, 2, 3, 4)
    config.seeds = (0,)
    config.settings = (
        "pretrain.train.steps=500",
        "finetune.train.steps=600",
        "finetune.train.checkpoint_every=600",
        "pretrain.train.checkpoint_every=500",
    )
    # Every arm tries the same rates on patients of the training side of fold 0.
    config.tune = dict(
        key="finetune.optimizer.peak_lr",
        candidates=(1e-3, 3e-3),
        labelled=(2,),
        fold=0,
        seed=0,
        holdout=20,
    )
    return config
