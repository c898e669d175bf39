r"""What each part of ACTION does, on ACDC with 3 labels: one part left out an arm.

python -m pclseg.cli.grid configs/grids/acdc_action_stages.py --jobs=2 \
    --out=runs/acdc_action_stages --set=data.raw_dir=data/ACDC

Split, sizes and seeds are those of `acdc_semi.py`, of which `action` and
`ssl4mis_scratch` are the whole and the nothing.
"""

import ml_collections

from pclseg.config import parse_arg

WITHOUT = {
    "local": "stages=('pretrain','finetune') finetune.init_from=pretrain"
    " finetune.init_parts=('encoder',)",
    "pretrain_local": "stages=('finetune',) finetune.init_from=",
    "finetune": "stages=('pretrain','local')",
    "contrast": "finetune.method.contrast_weight=0.0",
    "pseudo": "finetune.method.pseudo_weight=0.0",
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The grid; `arg` is size=cpu|paper."""
    given = parse_arg(arg, size="cpu")
    config = ml_collections.ConfigDict()
    config.arms = tuple(
        f"configs/action_acdc.py arm=action_without_{name} {changes}"
        for name, changes in WITHOUT.items()
    )
    config.argument = f"size={given.size}"
    config.labelled = (3,)
    config.folds = (0,)
    config.seeds = (0, 1, 2)
    config.settings = ("data.split.file=configs/splits/acdc_ssl4mis.json",)
    config.tune = dict(
        key="finetune.optimizer.peak_lr",
        candidates=(),
        labelled=(3,),
        fold=0,
        seed=0,
        holdout=10,
    )
    return config
