r"""What each term of MONA does, on ACDC with 3 labelled patients.

python -m pclseg.cli.grid configs/grids/acdc_mona_terms.py --jobs=2 \
    --out=runs/acdc_mona_terms --set=data.raw_dir=data/ACDC

Split, sizes and seeds are those of `acdc_semi.py`. L_nn draws slices together and has
nothing that holds them apart, so there are weights of it between 0 and the paper's 1;
the other terms are left out, one an arm, where it has no part. L_eqv has the weight of
the authors' code, 1, but for "warp_0.1" and "without_warp", and no arm but "warmup_200"
a warm-up; the last arms ask whether less of it, a warm-up or a lower rate does better
at the rate of this size.
"""

import ml_collections

from pclseg.config import sibling

METHOD, WARMUP = "finetune.method", "finetune.optimizer.warmup_steps"
WARPS = f"{WARMUP}=0 {METHOD}.neighbour_weight=0.0 {METHOD}.warp_weight"
WHOLE = f"{WARPS}=1.0"
CHANGES = {
    **{
        f"neighbours_{weight:g}": f"{WARMUP}=0 {METHOD}.neighbour_weight={weight}"
        f" {METHOD}.warp_weight=1.0"
        for weight in (0.0, 0.01, 0.1, 1.0)
    },
    "neighbours_0_without_contrast": f"{WHOLE} {METHOD}.contrast_weight=0.0",
    "neighbours_0_without_pseudo": f"{WHOLE} {METHOD}.pseudo_weight=0.0",
    "neighbours_0_without_warp": f"{WARPS}=0.0",
    "warp_0.1": f"{WARPS}=0.1",
    "warmup_200": f"{WHOLE} {WARMUP}=200",
    "rate_0.03": f"{WHOLE} finetune.optimizer.peak_lr=0.03",
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The grid; `arg` is size=cpu|paper."""
    config = sibling(__file__, "acdc_semi.py", arg)
    config.arms = tuple(
        f"configs/mona_acdc.py arm=mona_{name} {changes}"
        for name, changes in CHANGES.items()
    )
    config.labelled = (3,)
    return config
