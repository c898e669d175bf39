r"""What each part of ACTION does, on ACDC with 3 labels: one part left out an arm.

python -m pclseg.cli.grid configs/grids/acdc_action_stages.py --jobs=2 \
    --out=runs/acdc_action_stages --set=data.raw_dir=data/ACDC

Split, sizes and seeds are those of `acdc_semi.py`, of which `action` and
`ssl4mis_scratch` are the whole and the nothing.
"""

import ml_collections

from pclseg.config import sibling

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
    config = sibling(__file__, "acdc_semi.py", arg)
    config.arms = tuple(
        f"configs/action_acdc.py arm=action_without_{name} {changes}"
        for name, changes in WITHOUT.items()
    )
    config.labelled = (3,)
    return config
