r"""The baseline of ACTION and its kin on MSD Hippocampus: labelled slices alone.

python -m pclseg.main --config=configs/ssl4mis_scratch_hippocampus.py \
    --config.data.raw_dir=DIR --workdir=runs/ssl4mis_scratch_hippocampus

The stage of `ssl4mis_scratch_acdc.py:size=cpu`, data as in `pcl_hippocampus.py`.
"""

import ml_collections

from pclseg.config import sibling, with_stages_of


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_hippocampus.py`."""
    config = sibling(__file__, "scratch_hippocampus.py", arg)
    return with_stages_of(
        config, sibling(__file__, "ssl4mis_scratch_acdc.py", "size=cpu")
    )
