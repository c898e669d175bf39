r"""MONA, ARCO and their draws on ACDC, in the split of SSL4MIS.

python -m pclseg.cli.grid configs/grids/acdc_arco.py --out=runs/acdc_arco --jobs=2 \
    --set=data.raw_dir=data/ACDC

Patients, slices, fine-tuning steps, optimiser and seeds are those of `acdc_semi.py`,
which has the arms to compare with. `arco_ns` is ARCO with naive draws.
"""

import ml_collections

from pclseg.config import sibling

ARCO, ACTION = "configs/arco_acdc.py", "configs/action_acdc.py"
ARMS = (
    "configs/mona_acdc.py",
    f"{ARCO} arm=arco_ns finetune.method.sampler=naive",
    f"{ARCO} arm=arco_sg",
    f"{ARCO} arm=arco_sag finetune.method.sampler=antithetic",
    f"{ACTION} arm=action_sg finetune.method.sampler=stratified",
    "configs/pcl_arco_acdc.py",
)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The grid; `arg` is size=cpu|paper."""
    config = sibling(__file__, "acdc_semi.py", arg)
    config.arms = ARMS
    return config
