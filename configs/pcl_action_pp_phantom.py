r"""PCL, then ACTION++ on the embedded phantom; needs no data.

python -m pclseg.main --config=configs/pcl_action_pp_phantom.py \
    --workdir=runs/pcl_action_pp_phantom

Stages as in `pcl_action_pp_acdc.py:size=cpu`, data as in `pcl_phantom.py`.
"""

import ml_collections

from pclseg.config import sibling, with_stages_of


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_phantom.py`."""
    config = sibling(__file__, "scratch_phantom.py", arg)
    config = with_stages_of(
        config, sibling(__file__, "pcl_action_pp_acdc.py", "size=cpu")
    )
    pretrain = sibling(__file__, "pcl_phantom.py", arg).pretrain
    for key in ("width", "backbone"):
        pretrain.model[key] = config.local.model[key]
    config.pretrain = pretrain
    return config
