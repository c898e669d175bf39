r"""TCSM after PCL: stages of `pcl_acdc.py` and `tcsm_acdc.py`.

python -m pclseg.main --config=configs/pcl_tcsm_acdc.py \
    --workdir=runs/pcl_tcsm_acdc
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_acdc.py`."""
    config = sibling(__file__, "pcl_acdc.py", arg)
    config.arm = "pcl_tcsm"
    config.finetune = sibling(__file__, "tcsm_acdc.py", arg).finetune
    config.finetune.init_from = "pretrain"
    return config
