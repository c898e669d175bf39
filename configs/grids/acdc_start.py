r"""What keeps the classes in the pseudo-labels at the start, on ACDC.

python -m pclseg.cli.grid configs/grids/acdc_start.py --out=runs/acdc_start --jobs=2 \
    --set=data.raw_dir=data/ACDC

Cells as in `acdc_arco.py` and `acdc_semi.py`, which have the same arms as they are:
with pseudo-labels that come in over 300 steps, or a learning rate that rises over 200.
"""

import ml_collections

from pclseg.config import sibling

CHANGES = {
    "ramp": "finetune.method.pseudo_ramp_steps=300",
    "warmup": "finetune.optimizer.warmup_steps=200",
}
ARMS = tuple(
    f"configs/{arm}_acdc.py arm={arm}_{name} {change}"
    for arm in ("mona", "action", "action_pp")
    for name, change in CHANGES.items()
)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The grid; `arg` is size=cpu|paper."""
    config = sibling(__file__, "acdc_semi.py", arg)
    config.arms = ARMS
    return config
