"""pclseg: positional contrastive learning for volumetric segmentation.

A trained model in five lines:

    import nibabel as nib, pclseg
    model = pclseg.load("runs/mine")  # a run, a model folder, or several of them
    scan = nib.load("scan.nii.gz")
    label = model.predict(scan.get_fdata(), affine=scan.affine)
    print({name: (label == v).sum() for name, v in model.classes.items()})
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from pclseg.trained import Segmenter

__version__ = "0.1.0"


def load(
    *paths: "Path | str",
    batch_size: int = 10,
    tile: int | None = None,
    flips: bool = False,
    largest_part: bool = False,
) -> "Segmenter":
    """Loads what was trained, for `predict(volume, spacing)`.

    The arguments and errors are those of `pclseg.trained.load_segmenter`.
    """
    from pclseg.trained import load_segmenter  # jax, which a command may do without

    return load_segmenter(
        paths,
        batch_size=batch_size,
        tile=tile,
        flips=flips,
        largest_part=largest_part,
    )
