r"""PCL, then labelled slices alone: what PCL gives without ACTION or ARCO after it.

python -m pclseg.main --config=configs/ssl4mis_pcl_acdc.py --config.data.raw_dir=DIR \
    --workdir=runs/ssl4mis_pcl_acdc

PCL as in `pcl_action_pp_acdc.py`; fine-tuning as in `ssl4mis_scratch_acdc.py`, with
the encoder that PCL left.
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_acdc.py`."""
    config = sibling(__file__, "ssl4mis_scratch_acdc.py", arg)
    config.arm = "ssl4mis_pcl"
    config.stages = ("pretrain", "finetune")
    config.pretrain = sibling(__file__, "pcl_action_pp_acdc.py", arg).pretrain
    config.finetune.init_from = "pretrain"
    config.finetune.init_parts = ("encoder",)
    return config
