r"""ACTION on your own NIfTI volumes.

python -m pclseg.main --workdir=runs/action --config.data.raw_dir=DIR \
    --config=configs/action_nifti.py:images=scans,labels=masks,classes=3

Stages of `action_acdc.py`, size=gpu as its `paper`; data as in `pcl_nifti.py`.
"""

import ml_collections

from pclseg.config import argument, pick, sibling, with_stages_of


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_nifti.py`."""
    config = sibling(__file__, "scratch_nifti.py", arg)
    sizes = {"gpu": "size=paper", "cpu": "size=cpu"}
    size = pick("size", argument(arg, "size", "gpu"), sizes)
    stages = sibling(__file__, "action_acdc.py", size)
    return with_stages_of(config, stages)
