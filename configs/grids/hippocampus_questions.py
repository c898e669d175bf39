r"""What PCL depends on, and mixup, on MSD Task04 Hippocampus: one change an arm.

python -m pclseg.cli.grid configs/grids/hippocampus_questions.py --jobs=2 \
    --out=runs/hippocampus_questions --set=data.raw_dir=data/Task04_Hippocampus

2 labels. Budgets, folds and patients are those of `hippocampus.py`; the fine-tuning
rate is the one that its tuning chose for every arm but `lr_third`.
"""

import ml_collections

PRETRAIN = {
    "pcl": "",
    "t_0.05": "method.position_threshold=0.05",
    "t_0.2": "method.position_threshold=0.2",
    "t_0.35": "method.position_threshold=0.35",
    "tau_0.05": "method.temperature=0.05",
    "tau_0.5": "method.temperature=0.5",
    "batch_16": "data.batch_size=16 train.steps=1000",  # the same slices
    "batch_64": "data.batch_size=64 train.steps=250",
    "epochs_x3": "train.steps=1500",
    "width_8": "model.width=8",
    # in place of elastic fields, turns and scales
    "intensity": (
        "augment={'name':'intensity','brightness':(-0.3,0.3),'contrast':(0.7,1.3),"
        "'clip':()}"
    ),
}
# of both stages
TOGETHER = {
    "epochs_x3_frozen": (
        "pretrain.train.steps=1500 finetune.optimizer.frozen=('encoder',)"
    ),
}
FINETUNE = {
    "scratch_width_8": "model.width=8",
    "frozen": "optimizer.frozen=('encoder',)",
    "lr_third": "optimizer.peak_lr=0.001",
}
MIXUP = {
    "mixup_alpha_0.001": "method.alpha=0.001",
    "mixup_1500": "train.steps=1500",
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The grid; it takes no argument."""
    del arg
    arms = ["configs/scratch_hippocampus.py"]
    for name, changes in PRETRAIN.items():
        own = [f"pretrain.{change}" for change in changes.split()]
        if name == "width_8":
            own.append(f"finetune.{changes}")
        arms.append(" ".join(["configs/pcl_hippocampus.py", f"arm={name}", *own]))
    for name, changes in TOGETHER.items():
        arms.append(f"configs/pcl_hippocampus.py arm={name} {changes}")
    for name, changes in FINETUNE.items():
        base = "scratch" if name.startswith("scratch") else "pcl"
        arms.append(f"configs/{base}_hippocampus.py arm={name} finetune.{changes}")
    arms.append("configs/pcl_hippocampus.py arm=transductive data.transductive=True")
    # What a decoder that was pre-trained too adds, beside the same without.
    arms.append("configs/gcl_proper_hippocampus.py")
    arms.append(
        "configs/gcl_local_hippocampus.py local.train.steps=500"
        " local.train.checkpoint_every=250"
    )
    # Why mixup falls behind: all but no blending, and more steps.
    arms.append("configs/mixup_hippocampus.py")
    for name, changes in MIXUP.items():
        arms.append(f"configs/mixup_hippocampus.py arm={name} finetune.{changes}")
    config = ml_collections.ConfigDict()
    config.arms = tuple(arms)
    config.argument = ""
    config.labelled = (2,)
    config.folds = (0, 1, 2)
    config.seeds = (0,)
    config.settings = (
        "pretrain.train.steps=500",
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
