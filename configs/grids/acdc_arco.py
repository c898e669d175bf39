r"""MONA, ARCO and their draws on ACDC, in the split of SSL4MIS.

python -m pclseg.cli.grid configs/grids/acdc_arco.py --out=runs/acdc_arco --jobs=2 \
    --set=data.raw_dir=data/ACDC

Patients, slices, fine-tuning steps and seeds are those of `acdc_semi.py`, which has the
arms to compare "action_sg" and "arco_paper" with. At size=cpu the others warm up, and
so does "ssl4mis_scratch_warmup_200" of `acdc_warmup.py`. MONA is ARCO with naive draws,
"arco_paper_ns" the same of ARCO without warps and strong views.
"""

import ml_collections

from pclseg.config import sibling

SAMPLER = "finetune.method.sampler"
ARCO, PAPER = "configs/arco_acdc.py", "configs/arco_paper_acdc.py"
ARMS = (
    "configs/mona_acdc.py",
    f"{ARCO} arm=arco_sg",
    f"{ARCO} arm=arco_sag {SAMPLER}=antithetic",
    f"configs/action_acdc.py arm=action_sg {SAMPLER}=stratified",
    "configs/pcl_arco_acdc.py",
    f"{PAPER} arm=arco_paper_ns {SAMPLER}=naive",
    f"{PAPER} arm=arco_paper_sg",
    f"{PAPER} arm=arco_paper_sag {SAMPLER}=antithetic",
)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The grid; `arg` is size=cpu|paper."""
    config = sibling(__file__, "acdc_semi.py", arg)
    config.arms = ARMS
    return config
