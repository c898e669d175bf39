"""The U-Net of SSL4MIS (github.com/HiLab-git/SSL4MIS), as ACTION and its kin use it.

Five levels of two convolutions with batch normalisation and leaky ReLU, and dropout
between the two on the way down; on the way up a 1 x 1 convolution, bilinear
enlargement and the same two convolutions. The lowest level is what `backbone_pcl` calls
the centre. Weights start as PyTorch's layers do. `width` is the number of channels of
level 1, 16 in SSL4MIS.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pclseg.models import layers
from pclseg.models.backbone_pcl import LEVELS, check_size

Array = jax.Array

_RATES = (0.05, 0.1, 0.2, 0.3, 0.5)  # of dropout, level by level on the way down


class ConvBlock(nn.Module):
    """Twice: 3 x 3 convolution, batch normalisation, leaky ReLU; dropout between."""

    features: int
    rate: float
    dtype: str
    bn_groups: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[B, H, W, C] -> [B, H, W, features] of `dtype`."""
        for i in (1, 2):
            conv = layers.conv3x3(
                self.features,
                dtype=self.dtype,
                name=f"conv{i}",
                fan_in=9 * x.shape[-1],
            )
            norm = layers.BatchNorm(
                self.dtype, self.bn_groups, self.axis_name, name=f"norm{i}"
            )
            x = layers.leaky_relu(norm(conv(x), train=train))
            if i == 1:
                x = layers.Dropout(self.rate, self.axis_name)(x, train=train)
        return x


def _conv_block(
    path: "Encoder | Decoder | LowerDecoder", features: int, level: int, rate: float
) -> nn.Module:
    """The block of a level, of a path that calls it with `(x, train)`."""
    # Its input is kept for the gradient, the rest computed again.
    block = nn.remat(ConvBlock, static_argnums=(2,)) if path.remat else ConvBlock
    return block(
        features, rate, path.dtype, path.bn_groups, path.axis_name, name=f"level{level}"
    )


class Encoder(nn.Module):
    """The contracting path, its lowest level included."""

    width: int
    dtype: str
    bn_groups: int
    axis_name: str | None
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: Array, *, train: bool
    ) -> tuple[Array, tuple[Array, ...]]:
        """As `backbone_pcl.Encoder`; the centre is level 5, [B, H/16, W/16, 16 width].

        Raises:
            ValueError: if H or W is no multiple of 16.
        """
        check_size(images)
        x = images.astype(self.dtype)
        outputs = []
        for level, rate in enumerate(_RATES, start=1):
            if level > 1:
                x = layers.max_pool(x)
            x = _conv_block(self, self.width * 2 ** (level - 1), level, rate)(x, train)
            outputs.append(x)
        return outputs[-1], tuple(outputs[:-1])


class Decoder(nn.Module):
    """The expanding path with the classifier of pixels, a 3 x 3 convolution."""

    width: int
    num_classes: int
    dtype: str
    bn_groups: int
    axis_name: str | None
    remat: bool = False

    @nn.compact
    def __call__(
        self, centre: Array, skips: tuple[Array, ...], *, train: bool
    ) -> tuple[Array, tuple[Array, ...]]:
        """What the encoder returns -> what it makes of it.

        Returns:
            Logits [B, H, W, num_classes] float32; the features of levels 4 to 1, that
            of level i [B, H / 2^(i-1), W / 2^(i-1), 2^(i-1) width] of `dtype`.
        """
        maps = _expand(self, centre, skips, last_level=1, train=train)
        # In float32: thresholds of confidence and entropies are finer than bfloat16.
        logits = layers.conv3x3(
            self.num_classes, dtype="float32", name="logits", fan_in=9 * self.width
        )
        return logits(maps[-1]), maps


class LowerDecoder(nn.Module):
    """The levels 4 to 2 of `Decoder`, under the same names."""

    width: int
    dtype: str
    bn_groups: int
    axis_name: str | None
    remat: bool = False

    @nn.compact
    def __call__(
        self, centre: Array, skips: tuple[Array, ...], *, train: bool
    ) -> Array:
        """What the encoder returns -> [B, H/2, W/2, 2 width] of `dtype`."""
        return _expand(self, centre, skips, last_level=2, train=train)[-1]


def _expand(
    decoder: Decoder | LowerDecoder,
    centre: Array,
    skips: tuple[Array, ...],
    *,
    last_level: int,
    train: bool,
) -> tuple[Array, ...]:
    """Features of levels down to `last_level`; the layers are those of `decoder`."""
    x, maps = centre, []
    for level in range(LEVELS, last_level - 1, -1):
        features = decoder.width * 2 ** (level - 1)
        narrow = layers.dense(
            features, fan_in=x.shape[-1], name=f"up{level}", dtype=decoder.dtype
        )
        x = jnp.concatenate([skips[level - 1], layers.double_size(narrow(x))], axis=-1)
        x = _conv_block(decoder, features, level, 0.0)(x, train)
        maps.append(x)
    return tuple(maps)
