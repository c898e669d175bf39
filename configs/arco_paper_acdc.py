r"""ARCO on ACDC (cine MRI) without warps and strong views, as its paper has it.

python -m pclseg.main --config=configs/arco_paper_acdc.py --config.data.raw_dir=DIR \
    --workdir=runs/arco_paper_acdc

The rest is as in `arco_acdc.py`. It is compared with the same and naive draws,
--config.finetune.method.sampler=naive. See docs/methods/arco.md.
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_acdc.py`."""
    config = sibling(__file__, "arco_acdc.py", arg)
    config.arm = "arco_paper"
    config.pretrain.method.strong = dict(name="none")
    method = config.finetune.method
    method.strong = dict(name="none")
    method.mix_mode = "none"
    method.warp_weight = 0.0
    config.finetune.optimizer.warmup_steps = 0
    return config
