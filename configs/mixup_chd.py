"""Mixup of labelled slices, from random weights; all else as `scratch_chd.py`.

python -m pclseg.main --config=configs/mixup_chd.py --workdir=runs/mixup_chd
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_chd.py`."""
    config = sibling(__file__, "scratch_chd.py", arg)
    config.arm = "mixup"
    config.finetune.method = dict(name="mixup", alpha=0.1)
    return config
