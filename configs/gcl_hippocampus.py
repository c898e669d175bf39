"""GCL instead of PCL; all else as `pcl_hippocampus.py`, so that budgets are equal.

python -m pclseg.main --config=configs/gcl_hippocampus.py --workdir=runs/gcl_hippocampus
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_hippocampus.py`."""
    config = sibling(__file__, "pcl_hippocampus.py", arg)
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
