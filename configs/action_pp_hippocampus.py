r"""ACTION++ on MSD Hippocampus (MRI).

python -m pclseg.main --config=configs/action_pp_hippocampus.py \
    --config.data.raw_dir=DIR --workdir=runs/action_pp_hippocampus

Stages as in `action_pp_acdc.py:size=cpu`, data as in `pcl_hippocampus.py`.
"""

import ml_collections

from pclseg.config import sibling, with_stages_of


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_hippocampus.py`."""
    config = sibling(__file__, "scratch_hippocampus.py", arg)
    return with_stages_of(config, sibling(__file__, "action_pp_acdc.py", "size=cpu"))
