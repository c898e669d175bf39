r"""Mixup of labelled slices, from random weights; all else as `scratch_phantom.py`.

python -m pclseg.main --config=configs/mixup_phantom.py \
    --workdir=runs/mixup_phantom
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_phantom.py`."""
    config = sibling(__file__, "scratch_phantom.py", arg)
    config.arm = "mixup"
    config.finetune.method = dict(name="mixup", alpha=0.1)
    return config
