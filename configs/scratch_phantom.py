"""The baseline: fine-tuning from random weights; all else as `pcl_phantom.py`.

python -m pclseg.main --config=configs/scratch_phantom.py --workdir=runs/scratch_phantom
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_phantom.py`."""
    config = sibling(__file__, "pcl_phantom.py", arg)
    config.arm = "scratch"
    config.stages = ("finetune",)
    del config.pretrain
    config.finetune.init_from = ""
    return config
