r"""What each term of MONA does, on ACDC with 3 labelled patients.

python -m pclseg.cli.grid configs/grids/acdc_mona_terms.py --jobs=2 \
    --out=runs/acdc_mona_terms --set=data.raw_dir=data/ACDC

Split, sizes and seeds are those of `acdc_semi.py`. L_nn draws slices together and has
nothing that holds them apart, so there are weights of it between 0 and the paper's 1;
the other terms are left out, one an arm, where it has no part.
"""

import ml_collections

from pclseg.config import sibling

MONA = "configs/mona_acdc.py"
WITHOUT = ("contrast", "pseudo", "warp")
NEIGHBOURS = (0.0, 0.01, 0.1, 1.0)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The grid; `arg` is size=cpu|paper."""
    config = sibling(__file__, "acdc_semi.py", arg)
    config.arms = (
        *(
            f"{MONA} arm=mona_neighbours_{weight:g}"
            f" finetune.method.neighbour_weight={weight}"
            for weight in NEIGHBOURS
        ),
        *(
            f"{MONA} arm=mona_neighbours_0_without_{name}"
            f" finetune.method.neighbour_weight=0.0 finetune.method.{name}_weight=0.0"
            for name in WITHOUT
        ),
    )
    config.labelled = (3,)
    return config
