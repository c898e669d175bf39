r"""What a warm-up of the learning rate does for pseudo-labels, on ACDC.

python -m pclseg.cli.grid configs/grids/acdc_warmup.py --out=runs/acdc_warmup --jobs=2 \
    --set=data.raw_dir=data/ACDC

Fine-tuning with a rate that rises over 200 steps, and one that starts at its peak;
cells as in `acdc_semi.py` and `acdc_arco.py`.
"""

import ml_collections

from pclseg.config import sibling

WARMUP = "finetune.optimizer.warmup_steps"
ARMS = tuple(
    f"configs/{arm}_acdc.py arm={arm}_warmup_{steps} {WARMUP}={steps}"
    for arm in ("ssl4mis_scratch", "action", "action_pp", "mona")
    for steps in (0, 200)
)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The grid; `arg` is size=cpu|paper."""
    config = sibling(__file__, "acdc_semi.py", arg)
    config.arms = ARMS
    return config
