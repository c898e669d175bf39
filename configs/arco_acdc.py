r"""ARCO on ACDC (cine MRI): MONA with stratified draws, and as its paper has it.

python -m pclseg.main --config=configs/arco_acdc.py --config.data.raw_dir=DIR \
    --workdir=runs/arco_acdc

Stratified groups ("SG"); --config.finetune.method.sampler=antithetic for "SAG", naive
for what they are compared with. No warps and no strong views, as the paper; for the
authors' code see `arco_code_acdc.py`. Sizes and split as in `action_acdc.py`; see
docs/methods/arco.md.
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_acdc.py`."""
    config = sibling(__file__, "mona_acdc.py", arg)
    config.arm = "arco"
    config.pretrain.method.strong = dict(name="none")
    method = config.finetune.method
    method.sampler = "stratified"
    method.strong = dict(name="none")
    method.mix_mode = "none"
    method.warp_weight = 0.0
    return config
