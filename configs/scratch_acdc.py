"""The baseline: fine-tuning from random weights; all else as `pcl_acdc.py`.

python -m pclseg.main --config=configs/scratch_acdc.py --workdir=runs/scratch_acdc
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_acdc.py`."""
    config = sibling(__file__, "pcl_acdc.py", arg)
    config.arm = "scratch"
    config.stages = ("finetune",)
    del config.pretrain
    config.finetune.init_from = ""
    return config
