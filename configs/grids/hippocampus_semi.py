r"""ACTION, ACTION++, MONA, ARCO on MSD Hippocampus, beside labelled slices alone.

python -m pclseg.cli.grid configs/grids/hippocampus_semi.py --jobs=2 \
    --out=runs/hippocampus_semi --set=data.raw_dir=data/Task04_Hippocampus

All arms: network, optimiser and steps of fine-tuning as on ACDC, at the size for two
CPU cores. MONA and ARCO warm up, the others do not, and labels alone once each way.
MONA is ARCO with naive draws; "action_sg" is ACTION with stratified ones.
"""

import ml_collections

from pclseg.config import sibling

SAMPLER = "finetune.method.sampler"
SCRATCH = "configs/ssl4mis_scratch_hippocampus.py"
ARMS = (
    SCRATCH,
    f"{SCRATCH} arm=ssl4mis_scratch_warmup finetune.optimizer.warmup_steps=200",
    "configs/action_hippocampus.py",
    f"configs/action_hippocampus.py arm=action_sg {SAMPLER}=stratified",
    "configs/action_pp_hippocampus.py",
    "configs/pcl_action_pp_hippocampus.py",
    "configs/mona_hippocampus.py",
    "configs/arco_hippocampus.py arm=arco_sg",
    f"configs/arco_hippocampus.py arm=arco_sag {SAMPLER}=antithetic",
    "configs/pcl_arco_hippocampus.py",
)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The grid; it takes no argument."""
    del arg
    config = sibling(__file__, "acdc_semi.py", "")
    config.arms = ARMS
    config.argument = ""
    config.labelled = (2, 6)
    config.settings = ("evaluate.every_epochs=1000",)
    config.tune.update(labelled=(2,), holdout=20)
    return config
