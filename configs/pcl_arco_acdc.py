r"""PCL, then ARCO: the encoder of both its stages begins as PCL left it.

python -m pclseg.main --config=configs/pcl_arco_acdc.py --config.data.raw_dir=DIR \
    --workdir=runs/pcl_arco_acdc

PCL as in `pcl_acdc.py`, on the U-Net of SSL4MIS; the rest as `arco_acdc.py`. Nobody has
published this combination.
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_acdc.py`."""
    config = sibling(__file__, "pcl_action_pp_acdc.py", arg)
    arco = sibling(__file__, "arco_acdc.py", arg)
    config.arm = "pcl_arco"
    config.local, config.finetune = arco.pretrain, arco.finetune
    config.local.init_from = "pretrain"
    config.local.init_parts = ("encoder",)
    config.finetune.init_from = "local"
    return config
