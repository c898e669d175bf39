"""The peer of the augmentation: the authors' chain in batchgenerators."""

import warnings

import numpy as np
from batchgenerators.transforms.abstract_transforms import Compose, RndTransform
from batchgenerators.transforms.spatial_transforms import (
    MirrorTransform,
    SpatialTransform,
)


def make_chain(size: int, *, shrink: float):
    """The authors' spatial chain; `shrink` is 1 for pixels of 1.25 mm."""
    spatial = SpatialTransform(
        (size, size),
        patch_center_dist_from_border=None,
        do_elastic_deform=True,
        alpha=(100.0 * shrink**2, 350.0 * shrink**2),
        sigma=(14.0 * shrink, 17.0 * shrink),
        do_rotation=True,
        angle_x=(0, 2 * np.pi),
        do_scale=True,
        scale=(0.7, 1.3),
        border_mode_data="constant",
        order_data=3,
        border_mode_seg="constant",
        order_seg=0,
        random_crop=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        spatial = RndTransform(spatial, prob=0.67)
    return Compose([MirrorTransform(axes=(0, 1)), spatial])
