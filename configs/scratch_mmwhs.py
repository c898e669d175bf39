"""The baseline: fine-tuning from random weights; all else as `chd_to_mmwhs.py`.

python -m pclseg.main --config=configs/scratch_mmwhs.py --workdir=runs/scratch_mmwhs
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `chd_to_mmwhs.py`, where source has no effect."""
    config = sibling(__file__, "chd_to_mmwhs.py", arg)
    config.arm = "scratch"
    config.finetune.init_from = ""
    return config
