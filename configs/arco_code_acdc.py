r"""ARCO on ACDC (cine MRI), closer to the authors' code, to compare with.

python -m pclseg.main --config=configs/arco_code_acdc.py --config.data.raw_dir=DIR \
    --workdir=runs/arco_code_acdc

Their draws, keys, temperatures, pixels of L_unsup, teacher, weight of the warps and
heads of pre-training without a ReLU, and no neighbour term, as theirs has no gradient;
the rest is as in `mona_acdc.py`, see docs/methods/arco.md.
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_acdc.py`."""
    config = sibling(__file__, "mona_acdc.py", arg)
    config.arm = "arco_code"
    config.pretrain.method.teacher_temperature = (0.1, 0.1)
    config.pretrain.method.teacher_mode = "train"
    config.pretrain.model.activate_heads = False
    method = config.finetune.method
    method.sampler = "folded"
    method.key_rule = "code"
    method.pseudo_pixels = "wrong"
    method.teacher_mode = "train"
    method.neighbour_weight = 0.0
    method.warp_weight = 1.0
    config.finetune.optimizer.warmup_steps = 0
    return config
