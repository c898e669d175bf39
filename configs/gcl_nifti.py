r"""GCL instead of PCL; all else as `pcl_nifti.py`, so that budgets are equal.

python -m pclseg.main --workdir=runs/mine_gcl --config.data.raw_dir=DIR \
    --config=configs/gcl_nifti.py:images=scans,labels=masks,classes=3
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_nifti.py`."""
    config = sibling(__file__, "pcl_nifti.py", arg)
    config.arm = "gcl"
    config.pretrain.method = dict(
        name="gcl",
        temperature=0.1,
        base_temperature=0.07,
        views="separate",
        groups_in_turn=False,
        similarities="auto",
    )
    return config
