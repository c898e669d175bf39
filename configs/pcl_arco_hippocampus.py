r"""PCL, then ARCO, on MSD Hippocampus (MRI).

python -m pclseg.main --config=configs/pcl_arco_hippocampus.py \
    --config.data.raw_dir=DIR --workdir=runs/pcl_arco_hippocampus

PCL as in `pcl_action_pp_hippocampus.py`, the rest as `arco_hippocampus.py`.
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_hippocampus.py`."""
    config = sibling(__file__, "pcl_action_pp_hippocampus.py", arg)
    arco = sibling(__file__, "arco_hippocampus.py", arg)
    config.arm = "pcl_arco"
    config.local, config.finetune = arco.pretrain, arco.finetune
    config.local.init_from = "pretrain"
    config.local.init_parts = ("encoder",)
    config.finetune.init_from = "local"
    return config
