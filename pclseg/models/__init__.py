"""Networks by name."""

from typing import Any

import flax.linen as nn

from pclseg.errors import UserError
from pclseg.models import unet2d, unet2d_semi
from pclseg.named import checked_call

_MODELS: dict[str, type[nn.Module]] = {
    "unet2d": unet2d.UNet2D,
    "unet2d_contrast": unet2d.UNet2DContrast,
    "unet2d_dense": unet2d_semi.UNet2DDense,
    "unet2d_distill": unet2d_semi.UNet2DDistill,
    "unet2d_distill_local": unet2d_semi.UNet2DDistillLocal,
    "unet2d_jigsaw": unet2d.UNet2DJigsaw,
    "unet2d_local": unet2d.UNet2DLocal,
    "unet2d_pyramid": unet2d_semi.UNet2DPyramid,
}
_DTYPES = ("float32", "bfloat16")


def make(name: str, **kwargs: Any) -> nn.Module:
    """The network called `name`; `kwargs` are the fields of its class.

    Raises:
        UserError: for an unknown name, setting, backbone or compute dtype.
    """
    if name not in _MODELS:
        known = ", ".join(sorted(_MODELS))
        raise UserError(f"model.name is {name!r}; known models are: {known}.")
    if kwargs.get("backbone", "pcl") not in unet2d.BACKBONES:
        known = ", ".join(unet2d.BACKBONES)
        raise UserError(
            f"model.backbone is {kwargs['backbone']!r}; expected one of: {known}."
        )
    if kwargs.get("dtype", "float32") not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise UserError(
            f"model.dtype is {kwargs['dtype']!r}; expected one of: {known}."
        )
    stride = kwargs.get("stride", 1)
    if isinstance(stride, int) and stride < 1:
        raise UserError(f"model.stride is {stride}; expected 1 or more pixels.")
    return checked_call(_MODELS[name], f"model {name!r}", **kwargs)
