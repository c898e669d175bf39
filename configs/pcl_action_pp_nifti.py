r"""PCL, then ACTION++, on your own NIfTI volumes.

python -m pclseg.main --workdir=runs/pcl_action_pp --config.data.raw_dir=DIR \
    --config=configs/pcl_action_pp_nifti.py:images=scans,labels=masks,classes=3

PCL and data as in `pcl_nifti.py`, on the U-Net of SSL4MIS; for size=cpu with the batch,
rate and steps of `pcl_acdc.py`. The other stages are those of `action_pp_nifti.py`.
"""

import ml_collections

from pclseg.config import argument, pick, sibling, with_stages_of


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_nifti.py`."""
    config = sibling(__file__, "scratch_nifti.py", arg)
    sizes = {"gpu": "size=paper", "cpu": "size=cpu"}
    size = pick("size", argument(arg, "size", "gpu"), sizes)
    stages = sibling(__file__, "pcl_action_pp_acdc.py", size)
    config = with_stages_of(config, stages)
    pretrain = sibling(__file__, "pcl_nifti.py", arg).pretrain
    for key in ("width", "backbone"):
        pretrain.model[key] = config.local.model[key]
    if size == "size=cpu":  # 16 slices at 0.03 may never leave the start
        pretrain.data.batch_size = config.pretrain.data.batch_size
        pretrain.optimizer, pretrain.train = (
            config.pretrain.optimizer,
            config.pretrain.train,
        )
    config.pretrain = pretrain
    return config
