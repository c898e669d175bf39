"""The baseline: fine-tuning from random weights; all else as `acdc_to_hvsmr.py`.

python -m pclseg.main --config=configs/scratch_hvsmr.py --workdir=runs/scratch_hvsmr
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `acdc_to_hvsmr.py`, where source has no effect."""
    config = sibling(__file__, "acdc_to_hvsmr.py", arg)
    config.arm = "scratch"
    config.finetune.init_from = ""
    return config
