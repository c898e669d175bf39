r"""ACTION++ on the embedded phantom; needs no data.

python -m pclseg.main --config=configs/action_pp_phantom.py \
    --workdir=runs/action_pp_phantom

Stages as in `action_pp_acdc.py:size=cpu`, data as in `pcl_phantom.py`.
"""

import ml_collections

from pclseg.config import sibling, with_stages_of


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_phantom.py`."""
    config = sibling(__file__, "scratch_phantom.py", arg)
    return with_stages_of(config, sibling(__file__, "action_pp_acdc.py", "size=cpu"))
