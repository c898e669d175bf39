r"""The baseline of ACTION and its kin: labelled slices alone, from random weights.

python -m pclseg.main --config=configs/ssl4mis_scratch_acdc.py \
    --config.data.raw_dir=DIR --workdir=runs/ssl4mis_scratch_acdc

Network, augmentation, optimiser and steps are those of stage iii of `action_acdc.py`.
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_acdc.py`."""
    config = sibling(__file__, "action_acdc.py", arg)
    config.arm = "ssl4mis_scratch"
    config.stages = ("finetune",)
    del config.pretrain, config.local
    config.finetune.init_from = ""
    config.finetune.model.name = "unet2d"
    for key in ("out_dim", "stride", "activate_heads"):
        del config.finetune.model[key]
    config.finetune.data.unlabelled_batch_size = 0
    config.finetune.method = dict(name="supervised", dice_weight=0.5)
    return config
