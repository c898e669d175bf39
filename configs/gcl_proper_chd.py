"""GCL proper instead of PCL; all else as `pcl_chd.py`, but the learning rate.

python -m pclseg.main --config=configs/gcl_proper_chd.py --workdir=runs/gcl_proper_chd

32 slices and one augmentation of each are the 64 images a step of PCL. The paper's
other variant: --config.pretrain.method.variant=GD- with augmentations=2 and
--config.pretrain.data.batch_size=20, 60 images, and four times the learning rate.
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_chd.py`."""
    config = sibling(__file__, "pcl_chd.py", arg)
    config.arm = "gcl_proper"
    config.pretrain.data.sampling = "partitions"
    config.pretrain.method = dict(
        name="gcl_proper",
        variant="GD",
        augmentations=1,
        temperature=0.1,
        views="separate",
    )
    # an image's loss is the sum over 8 positives, that of pcl 0.1 / 0.07 of a mean
    config.pretrain.optimizer.peak_lr = 0.018
    return config
