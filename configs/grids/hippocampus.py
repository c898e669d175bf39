r"""The study of docs/results.md on MSD Task04 Hippocampus: every arm, 5 folds.

python -m pclseg.cli.grid configs/grids/hippocampus.py --out=runs/hippocampus \
    --jobs=2 --set=data.raw_dir=data/Task04_Hippocampus

Sized for two CPU cores: 500 steps of pre-training and 500 of fine-tuning for every arm.
"""

import ml_collections

ARMS = (
    "scratch",
    "rotation",
    "pirl",
    "simclr",
    "gcl",
    "gcl_proper",
    "pcl",
    "mixup",
    "tcsm",
    "pcl_tcsm",
)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The grid; it takes no argument."""
    del arg
    ramp = "finetune.method.ramp_steps=375"  # three quarters of the steps
    own = {"tcsm": f" {ramp}", "pcl_tcsm": f" {ramp}"}
    config = ml_collections.ConfigDict()
    config.arms = tuple(
        f"configs/{arm}_hippocampus.py{own.get(arm, '')}" for arm in ARMS
    )
    config.argument = ""
    config.labelled = (2, 6, 10, 0)  # 0: all
    config.folds = (0, 1, 2, 3, 4)
    config.seeds = (0,)
    config.settings = (
        "pretrain.train.steps=500",
        "pretrain.train.checkpoint_every=250",
        "finetune.train.steps=500",
        "finetune.train.checkpoint_every=250",
        "evaluate.every_epochs=1000",  # after the first epoch and at the end
    )
    # Every arm tries the same rates on patients of the training side of fold 0.
    config.tune = dict(
        key="finetune.optimizer.peak_lr",
        candidates=(3e-3, 1e-2),  # at 1e-3 500 steps are too few
        labelled=(2,),
        fold=0,
        seed=0,
        holdout=20,
    )
    return config
