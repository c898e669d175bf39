"""Rotation instead of PCL; what differs from `pcl_chd.py` stands here.

python -m pclseg.main --config=configs/rotation_chd.py --workdir=runs/rotation_chd

Four images of a slice enter a step where PCL takes two views: so a step has half as
many slices, as many images, and there are as many steps. The classes are rotations, so
no augmentation may rotate: the slices enter as they are.
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_chd.py`."""
    config = sibling(__file__, "pcl_chd.py", arg)
    config.arm = "rotation"
    config.pretrain.method = dict(name="rotation")
    config.pretrain.model.out_dim = 4
    config.pretrain.augment = dict(name="none")
    config.pretrain.data.batch_size //= 2
    config.pretrain.train.epochs //= 2  # of twice as many steps each
    return config
