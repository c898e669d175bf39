"""ACTION on the embedded phantom; needs no data.

python -m pclseg.main --config=configs/action_phantom.py --workdir=runs/action_phantom

Stages as in `action_acdc.py:size=cpu`, data as in `pcl_phantom.py`.
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_phantom.py`."""
    config = sibling(__file__, "scratch_phantom.py", arg)
    own = config.finetune
    acdc = sibling(__file__, "action_acdc.py", "size=cpu")
    config.arm, config.stages = acdc.arm, acdc.stages
    for name in acdc.stages:
        stage = config[name] = acdc[name]
        stage.data.crop_size = own.data.crop_size
        if "num_classes" in stage.model:
            stage.model.num_classes = own.model.num_classes
    config.local.model.window = 16
    return config
