r"""GCL proper instead of PCL: loss and sampler change, all else as `pcl_phantom.py`.

python -m pclseg.main --config=configs/gcl_proper_phantom.py \
    --workdir=runs/gcl_proper_phantom

32 slices and one augmentation of each are the 64 images a step of PCL. The paper's
other variant: --config.pretrain.method.variant=GD- with augmentations=2 and
--config.pretrain.data.batch_size=20, 60 images.
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_phantom.py`."""
    config = sibling(__file__, "pcl_phantom.py", arg)
    config.arm = "gcl_proper"
    config.pretrain.data.sampling = "partitions"
    config.pretrain.method = dict(
        name="gcl_proper",
        variant="GD",
        augmentations=1,
        temperature=0.1,
        views="separate",
    )
    return config
