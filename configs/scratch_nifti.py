r"""The baseline: fine-tuning from random weights; all else as `pcl_nifti.py`.

python -m pclseg.main --workdir=runs/mine_scratch --config.data.raw_dir=DIR \
    --config=configs/scratch_nifti.py:images=scans,labels=masks,classes=3
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_nifti.py`."""
    config = sibling(__file__, "pcl_nifti.py", arg)
    config.arm = "scratch"
    config.stages = ("finetune",)
    del config.pretrain
    config.finetune.init_from = ""
    return config
