r"""PCL, then ACTION++, on your own NIfTI volumes.

python -m pclseg.main --workdir=runs/pcl_action_pp --config.data.raw_dir=DIR \
    --config=configs/pcl_action_pp_nifti.py:images=scans,labels=masks,classes=3

PCL and data as in `pcl_nifti.py`, on the U-Net of SSL4MIS; the other stages as in
`action_pp_nifti.py`.
"""

import ml_collections

from pclseg.config import argument, sibling, with_stages_of


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_nifti.py`."""
    config = sibling(__file__, "scratch_nifti.py", arg)
    size = "cpu" if argument(arg, "size", "gpu") == "cpu" else "paper"
    stages = sibling(__file__, "pcl_action_pp_acdc.py", f"size={size}")
    config = with_stages_of(config, stages)
    config.pretrain = sibling(__file__, "pcl_nifti.py", arg).pretrain
    for key in ("width", "backbone"):
        config.pretrain.model[key] = config.local.model[key]
    return config
