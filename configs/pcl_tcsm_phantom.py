r"""TCSM after PCL: stages of `pcl_phantom.py` and `tcsm_phantom.py`.

python -m pclseg.main --config=configs/pcl_tcsm_phantom.py \
    --workdir=runs/pcl_tcsm_phantom
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_phantom.py`."""
    config = sibling(__file__, "pcl_phantom.py", arg)
    config.arm = "pcl_tcsm"
    config.finetune = sibling(__file__, "tcsm_phantom.py", arg).finetune
    config.finetune.init_from = "pretrain"
    return config
