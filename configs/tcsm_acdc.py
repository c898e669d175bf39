"""TCSM, from random weights; all else as `scratch_acdc.py`.

python -m pclseg.main --config=configs/tcsm_acdc.py --workdir=runs/tcsm_acdc
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_acdc.py`."""
    config = sibling(__file__, "scratch_acdc.py", arg)
    config.arm = "tcsm"
    labelled = config.data.split.labelled or 80  # 0 is all of a fold
    # an epoch is about two steps of 10 slices for every labelled patient
    steps = config.finetune.train.steps or config.finetune.train.epochs * 2 * labelled
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
