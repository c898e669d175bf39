"""The baseline: fine-tuning from random weights; all else as `pcl_chd.py`.

python -m pclseg.main --config=configs/scratch_chd.py --workdir=runs/scratch_chd
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_chd.py`."""
    config = sibling(__file__, "pcl_chd.py", arg)
    config.arm = "scratch"
    config.stages = ("finetune",)
    del config.pretrain
    config.finetune.init_from = ""
    return config
