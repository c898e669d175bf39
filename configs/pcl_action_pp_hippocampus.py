r"""PCL, then ACTION++, on MSD Hippocampus (MRI).

python -m pclseg.main --config=configs/pcl_action_pp_hippocampus.py \
    --config.data.raw_dir=DIR --workdir=runs/pcl_action_pp_hippocampus

PCL and data as in `pcl_hippocampus.py`, on the U-Net of SSL4MIS; the other stages as in
`pcl_action_pp_acdc.py:size=cpu`.
"""

import ml_collections

from pclseg.config import sibling, with_stages_of


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_hippocampus.py`."""
    config = sibling(__file__, "scratch_hippocampus.py", arg)
    semi = sibling(__file__, "pcl_action_pp_acdc.py", "size=cpu")
    config = with_stages_of(config, semi)
    config.pretrain = sibling(__file__, "pcl_hippocampus.py", arg).pretrain
    for key in ("width", "backbone"):
        config.pretrain.model[key] = config.local.model[key]
    return config
