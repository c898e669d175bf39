r"""Mean teacher beside ACTION and its kin, from random weights.

python -m pclseg.main --config=configs/ssl4mis_mean_teacher_acdc.py \
    --config.data.raw_dir=DIR --workdir=runs/ssl4mis_mean_teacher_acdc

Network, augmentation, optimiser and steps are those of stage iii of `action_acdc.py`.
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_acdc.py`."""
    config = sibling(__file__, "action_acdc.py", arg)
    config.arm = "ssl4mis_mean_teacher"
    config.stages = ("finetune",)
    del config.pretrain, config.local
    config.finetune.init_from = ""
    config.finetune.model.name = "unet2d"
    for key in ("out_dim", "stride", "activate_heads"):
        del config.finetune.model[key]
    config.finetune.method = dict(
        name="mean_teacher",
        max_weight=1.0,
        ramp_steps=round(0.75 * config.finetune.train.steps),
        max_decay=0.99,
        noise_std=0.1,
        dice_weight=0.5,
    )
    return config
