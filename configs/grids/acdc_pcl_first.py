r"""Is it PCL, or what comes after it, that helps on ACDC with 1, 3 and 7 labelled?

python -m pclseg.cli.grid configs/grids/acdc_pcl_first.py --out=runs/acdc_pcl_first \
    --jobs=2 --set=data.raw_dir=data/ACDC

Fine-tuning on labelled slices alone, from random weights and from PCL; cells as in
`acdc_semi.py`, which has PCL before ACTION++, as `acdc_arco.py` has it before ARCO.
"""

import ml_collections

from pclseg.config import sibling

ARMS = ("configs/ssl4mis_scratch_acdc.py", "configs/ssl4mis_pcl_acdc.py")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The grid; `arg` is size=cpu|paper."""
    config = sibling(__file__, "acdc_semi.py", arg)
    config.arms = ARMS
    return config
