r"""Mean teacher: `tcsm_acdc.py` without its transform.

python -m pclseg.main --config=configs/mean_teacher_acdc.py \
    --workdir=runs/mean_teacher_acdc
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_acdc.py`."""
    config = sibling(__file__, "tcsm_acdc.py", arg)
    config.arm = "mean_teacher"
    config.finetune.method.name = "mean_teacher"
    del config.finetune.method.zoom
    return config
