r"""Mean teacher: `tcsm_phantom.py` without its transform.

python -m pclseg.main --config=configs/mean_teacher_phantom.py \
    --workdir=runs/mean_teacher_phantom
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_phantom.py`."""
    config = sibling(__file__, "tcsm_phantom.py", arg)
    config.arm = "mean_teacher"
    config.finetune.method.name = "mean_teacher"
    del config.finetune.method.zoom
    return config
