"""TCSM, from random weights; all else as `scratch_chd.py`.

python -m pclseg.main --config=configs/tcsm_chd.py --workdir=runs/tcsm_chd

The consistency weight rises over 3/4 of the steps, whose number is a guess here, as
nothing was trained on the real volumes: set `ramp_steps` by the steps of a dry run.
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_chd.py`."""
    config = sibling(__file__, "scratch_chd.py", arg)
    config.arm = "tcsm"
    labelled = config.data.split.labelled or 54  # 0 is all of a fold
    # if volumes have about 200 slices, 20 steps of 10 for every labelled patient
    steps = config.finetune.train.epochs * 20 * labelled
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
