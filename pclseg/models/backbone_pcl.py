"""The U-Net of Zeng et al. 2021, arXiv 2106.09157, as their code builds it.

Four levels of two convolutions with batch normalisation and leaky ReLU; a centre
without normalisation and with plain ReLU. `width` is the number of channels of level 1.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pclseg.models import layers
from pclseg.models.heads import Logits

Array = jax.Array

LEVELS = 4
MULTIPLE = 2**LEVELS  # height and width must be multiples of this


def check_size(images: Array) -> None:
    """Raises ValueError unless the sides of [B, H, W, C] are multiples of 16."""
    height, width = images.shape[1:3]
    if height % MULTIPLE or width % MULTIPLE:
        raise ValueError(
            f"images are {height} x {width} pixels; the U-Net expects height and"
            f" width to be multiples of {MULTIPLE}. Choose the crop size so."
        )


class ConvBlock(nn.Module):
    """Twice: 3 x 3 convolution, batch normalisation, leaky ReLU."""

    features: int
    dtype: str
    bn_groups: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[B, H, W, C] -> [B, H, W, features] of `dtype`."""
        for i in (1, 2):
            x = layers.conv3x3(self.features, dtype=self.dtype, name=f"conv{i}")(x)
            norm = layers.BatchNorm(
                self.dtype, self.bn_groups, self.axis_name, name=f"norm{i}"
            )
            x = layers.leaky_relu(norm(x, train=train))
        return x


def _conv_block(
    path: "Encoder | Decoder | LowerDecoder", features: int, level: int
) -> nn.Module:
    """The block of a level, of a path that calls it with `(x, train)`."""
    # Its input is kept for the gradient, the rest computed again.
    block = nn.remat(ConvBlock, static_argnums=(2,)) if path.remat else ConvBlock
    return block(
        features, path.dtype, path.bn_groups, path.axis_name, name=f"level{level}"
    )


class Encoder(nn.Module):
    """The contracting path with the centre."""

    width: int
    dtype: str
    bn_groups: int
    axis_name: str | None
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: Array, *, train: bool
    ) -> tuple[Array, tuple[Array, ...]]:
        """Features of every scale.

        Args:
            images: [B, H, W, C] float, H and W multiples of 16.
            train: whether to normalise by the batch and move the running averages.

        Returns:
            The centre, [B, H/16, W/16, 16 width], and the skips of levels 1 to 4, that
            of level i [B, H / 2^(i-1), W / 2^(i-1), 2^(i-1) width]; all of `dtype`.

        Raises:
            ValueError: if H or W is no multiple of 16.
        """
        check_size(images)
        x = images.astype(self.dtype)
        skips = []
        for level in range(1, LEVELS + 1):
            features = self.width * 2 ** (level - 1)
            x = _conv_block(self, features, level)(x, train)
            skips.append(x)
            x = layers.max_pool(x)
        return Centre(self.width * MULTIPLE, self.dtype, name="centre")(x), tuple(skips)


class Centre(nn.Module):
    """Twice: 3 x 3 convolution, ReLU; no normalisation."""

    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, H, W, features] of `dtype`."""
        for i in (1, 2):
            x = layers.conv3x3(self.features, dtype=self.dtype, name=f"conv{i}")(x)
            x = nn.relu(x)
        return x


class Decoder(nn.Module):
    """The expanding path with the classifier of pixels."""

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
        return Logits(self.num_classes, self.dtype, name="logits")(maps[-1]), maps


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
        x = layers.UpConv(features, decoder.dtype, name=f"up{level}")(x)
        x = jnp.concatenate([x, skips[level - 1]], axis=-1)
        x = _conv_block(decoder, features, level)(x, train)
        maps.append(x)
    return tuple(maps)
