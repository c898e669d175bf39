r"""ACTION++ on MSD Hippocampus (MRI).

python -m pclseg.main --config=configs/action_pp_hippocampus.py \
    --config.data.raw_dir=DIR --workdir=runs/action_pp_hippocampus

Stages as in `action_pp_acdc.py:size=cpu`, data as in `pcl_hippocampus.py`.
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_hippocampus.py`."""
    config = sibling(__file__, "scratch_hippocampus.py", arg)
    own = config.finetune
    acdc = sibling(__file__, "action_pp_acdc.py", "size=cpu")
    config.arm, config.stages = acdc.arm, acdc.stages
    for name in acdc.stages:
        stage = config[name] = acdc[name]
        stage.data.crop_size = own.data.crop_size
        if "num_classes" in stage.model:
            stage.model.num_classes = own.model.num_classes
    config.pretrain.model.window = 16
    return config
