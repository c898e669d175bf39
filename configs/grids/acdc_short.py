r"""A first look at ACDC at the size of the paper: one fold, three arms, in bfloat16.

python -m pclseg.cli.grid configs/grids/acdc_short.py --out=runs/acdc_short \
    --set=data.raw_dir=data/ACDC

1000 steps of pre-training, 26 passes of the paper's 300, and 1000 of fine-tuning: a few
minutes on one data-centre GPU. Rates are those of the configs, the same for all arms.
"""

import ml_collections


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The grid; it takes no argument."""
    del arg
    config = ml_collections.ConfigDict()
    config.arms = tuple(
        f"configs/{arm}_acdc.py" for arm in ("scratch", "pcl", "simclr")
    )
    config.argument = "size=paper"
    config.labelled = (2, 6)
    config.folds = (1,)
    config.seeds = (0,)
    config.settings = (
        "pretrain.model.dtype=bfloat16",
        "finetune.model.dtype=bfloat16",
        "pretrain.train.epochs=0",
        "pretrain.train.steps=1000",
        "finetune.train.epochs=0",
        "finetune.train.steps=1000",
        "evaluate.every_epochs=1000",  # after the first epoch and at the end
        "evaluate.grid=prepared",  # as docs/results.md
    )
    config.tune = dict(
        key="finetune.optimizer.peak_lr",
        candidates=(),
        labelled=(2,),
        fold=0,
        seed=0,
        holdout=10,
    )
    return config
