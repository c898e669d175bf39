"""ARCO on the embedded phantom; needs no data.

python -m pclseg.main --config=configs/arco_phantom.py --workdir=runs/arco_phantom

Stages as in `arco_acdc.py:size=cpu`, data as in `pcl_phantom.py`.
"""

import ml_collections

from pclseg.config import sibling, with_stages_of


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_phantom.py`."""
    config = sibling(__file__, "scratch_phantom.py", arg)
    return with_stages_of(config, sibling(__file__, "arco_acdc.py", "size=cpu"))
