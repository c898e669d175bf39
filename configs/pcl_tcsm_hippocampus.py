r"""TCSM after PCL: stages of `pcl_hippocampus.py` and `tcsm_hippocampus.py`.

python -m pclseg.main --config=configs/pcl_tcsm_hippocampus.py \
    --workdir=runs/pcl_tcsm_hippocampus
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_hippocampus.py`."""
    config = sibling(__file__, "pcl_hippocampus.py", arg)
    config.arm = "pcl_tcsm"
    config.finetune = sibling(__file__, "tcsm_hippocampus.py", arg).finetune
    config.finetune.init_from = "pretrain"
    return config
