r"""Is it position that helps a frozen encoder? MSD Task04 Hippocampus, 2 and 6 labels.

python -m pclseg.cli.grid configs/grids/hippocampus_frozen.py --jobs=2 \
    --out=runs/hippocampus_frozen --set=data.raw_dir=data/Task04_Hippocampus

The controls of `epochs_x3_frozen` in `hippocampus_questions.py`: encoders of random
weights and of other pre-trainings, frozen in the same way, against all weights trained
from the start. 1500 pre-training steps, 500 of fine-tuning.
"""

import ml_collections

PRETRAINED = ("pcl", "gcl", "simclr")
FROZEN = "finetune.optimizer.frozen=('encoder',)"


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The grid; it takes no argument."""
    del arg
    config = ml_collections.ConfigDict()
    config.arms = (
        "configs/scratch_hippocampus.py",
        *(
            f"configs/{arm}_hippocampus.py arm={arm}_frozen {FROZEN}"
            for arm in ("scratch", *PRETRAINED)
        ),
    )
    config.argument = ""
    config.labelled = (2, 6)
    config.folds = (0, 1, 2)
    config.seeds = (0, 1)
    config.settings = (
        "pretrain.train.steps=1500",
        "pretrain.train.checkpoint_every=250",
        "finetune.train.steps=500",
        "finetune.train.checkpoint_every=250",
        "evaluate.every_epochs=1000",
    )
    config.tune = dict(
        key="finetune.optimizer.peak_lr",
        candidates=(),
        labelled=(2,),
        fold=0,
        seed=0,
        holdout=20,
    )
    return config
