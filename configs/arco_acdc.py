r"""ARCO on ACDC (cine MRI): MONA with stratified draws of pixels.

python -m pclseg.main --config=configs/arco_acdc.py --config.data.raw_dir=DIR \
    --workdir=runs/arco_acdc

Stratified groups ("SG"); --config.finetune.method.sampler=antithetic for "SAG". What
they are compared with is `mona_acdc.py`, whose draws are naive. What the authors' paper
and code have beside the draws is in `arco_paper_acdc.py` and `arco_code_acdc.py`. Sizes
and split as in `action_acdc.py`; see docs/methods/arco.md.
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_acdc.py`."""
    config = sibling(__file__, "mona_acdc.py", arg)
    config.arm = "arco"
    config.finetune.method.sampler = "stratified"
    return config
