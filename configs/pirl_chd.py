"""PIRL instead of PCL; all else as `pcl_chd.py`.

python -m pclseg.main --config=configs/pirl_chd.py --workdir=runs/pirl_chd

A slice and its nine patches enter a step, about as many pixels as PCL's two views. The
settings are those of the code of PCL's first author for PIRL; its authors' own are
temperature 0.07 and 32000 negatives.
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_chd.py`."""
    config = sibling(__file__, "pcl_chd.py", arg)
    config.arm = "pirl"
    config.pretrain.method = dict(
        name="pirl",
        temperature=0.1,
        num_negatives=128,
        jigsaw_weight=0.5,
        bank_momentum=0.5,
        patch_size=160,  # in cells of 170 pixels
    )
    config.pretrain.model.name = "unet2d_jigsaw"
    return config
