r"""PCL, then ACTION++: the encoder of both its stages begins as PCL left it.

python -m pclseg.main --config=configs/pcl_action_pp_acdc.py \
    --config.data.raw_dir=DIR --workdir=runs/pcl_action_pp_acdc

PCL as in `pcl_acdc.py`, on the U-Net of SSL4MIS; the rest as `action_pp_acdc.py`.
Nobody has published this combination.
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_acdc.py`."""
    config = sibling(__file__, "action_pp_acdc.py", arg)
    config.arm = "pcl_action_pp"
    config.stages = ("pretrain", "local", "finetune")
    config.local = config.pretrain
    config.pretrain = sibling(__file__, "pcl_acdc.py", arg).pretrain
    for key in ("width", "backbone"):
        config.pretrain.model[key] = config.local.model[key]
    config.pretrain.data.crop_size = config.local.data.crop_size
    config.local.init_from = "pretrain"
    config.local.init_parts = ("encoder",)
    config.finetune.init_from = "local"
    return config
