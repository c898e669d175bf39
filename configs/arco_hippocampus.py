r"""ARCO on MSD Hippocampus (MRI).

python -m pclseg.main --config=configs/arco_hippocampus.py --config.data.raw_dir=DIR \
    --workdir=runs/arco_hippocampus

Stages as in `arco_acdc.py:size=cpu`, data as in `pcl_hippocampus.py`.
"""

import ml_collections

from pclseg.config import sibling, with_stages_of


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_hippocampus.py`."""
    config = sibling(__file__, "scratch_hippocampus.py", arg)
    return with_stages_of(config, sibling(__file__, "arco_acdc.py", "size=cpu"))
