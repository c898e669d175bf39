r"""What keeps ACTION++ from losing classes on ACDC with 1 labelled patient.

python -m pclseg.cli.grid configs/grids/acdc_action_pp_one.py --jobs=2 \
    --out=runs/acdc_action_pp_one --set=data.raw_dir=data/ACDC

Split, sizes and seeds are those of `acdc_semi.py`, of which `action_pp` is the one to
compare with; what is changed is of its fine-tuning alone.
"""

import ml_collections

from pclseg.config import sibling

CHANGES = {
    "warm": "finetune.optimizer.warmup_steps=200",
    "pseudo01": "finetune.method.pseudo_weight=0.1",
    "low": "finetune.optimizer.peak_lr=0.01",
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The grid; `arg` is size=cpu|paper."""
    config = sibling(__file__, "acdc_semi.py", arg)
    config.arms = tuple(
        f"configs/action_pp_acdc.py arm=action_pp_{name} {change}"
        for name, change in CHANGES.items()
    )
    config.labelled = (1,)
    return config
