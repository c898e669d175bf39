"""SimCLR instead of PCL; all else as `pcl_phantom.py`, so that budgets are equal.

python -m pclseg.main --config=configs/simclr_phantom.py --workdir=runs/simclr_phantom
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_phantom.py`."""
    config = sibling(__file__, "pcl_phantom.py", arg)
    config.arm = "simclr"
    config.pretrain.method = dict(
        name="simclr",
        temperature=0.1,
        base_temperature=0.07,
        views="separate",
        groups_in_turn=False,
        similarities="auto",
    )
    return config
