"""TCSM, from random weights; all else as `scratch_phantom.py`.

python -m pclseg.main --config=configs/tcsm_phantom.py --workdir=runs/tcsm_phantom
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_phantom.py`."""
    config = sibling(__file__, "scratch_phantom.py", arg)
    config.arm = "tcsm"
    steps = config.finetune.train.steps
    config.finetune.data.unlabelled_batch_size = 10
    config.finetune.method = dict(
        name="tcsm",
        max_weight=1.0,
        ramp_steps=round(0.75 * steps),  # to be changed with the number of steps
        max_decay=0.999,
        noise_std=0.1,
        zoom=(1.0, 1.0),
    )
    return config
