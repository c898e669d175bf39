r"""Mixup of labelled slices, from random weights; all else as `scratch_acdc.py`.

python -m pclseg.main --config=configs/mixup_acdc.py \
    --workdir=runs/mixup_acdc
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_acdc.py`."""
    config = sibling(__file__, "scratch_acdc.py", arg)
    config.arm = "mixup"
    config.finetune.method = dict(name="mixup", alpha=0.1)
    return config
