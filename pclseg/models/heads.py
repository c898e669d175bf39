"""What stands on top of the encoder or the decoder."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pclseg import regions, windows
from pclseg.models import layers

Array = jax.Array

PARTS = 8  # of a window of `LocalHead`, along an axis


def global_average(features: Array) -> Array:
    """[B, H, W, C] of any float -> [B, C] float32, the mean over all places."""
    return features.astype(jnp.float32).mean(axis=(1, 2))


class TwoLayers(nn.Module):
    """Dense layer, ReLU, dense layer, along the last axis; all in float32.

    Attributes:
        out_dim: of what comes out.
        hidden: of what is between; None for that of the input.
        activate: whether there is a ReLU.
    """

    out_dim: int
    hidden: int | None = None
    activate: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., C] of any float -> [..., out_dim] float32, not of unit length."""
        channels = x.shape[-1]
        hidden = self.hidden or channels
        x = x.astype(jnp.float32)
        x = layers.dense(hidden, fan_in=channels, name="dense1")(x)
        x = nn.relu(x) if self.activate else x
        return layers.dense(self.out_dim, fan_in=hidden, name="dense2")(x)


class JigsawHead(nn.Module):
    """A projection of every patch; a dense layer over all of them in their order.

    Attributes:
        out_dim: D, of the projections and of the embedding.
    """

    out_dim: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """[B, P, H, W, C] of any float -> [B, D] float32, not of unit length."""
        rows, patches = features.shape[:2]
        flat = features.reshape(-1, *features.shape[2:])
        projected = TwoLayers(self.out_dim, name="patch")(global_average(flat))
        joined = projected.reshape(rows, patches * self.out_dim)
        fan_in = joined.shape[-1]
        return layers.dense(self.out_dim, fan_in=fan_in, name="join")(joined)


class Logits(nn.Module):
    """1 x 1 convolution without bias, accumulated and returned in float32.

    Attributes:
        num_classes: K, background included.
        dtype: of the factors.
    """

    num_classes: int
    dtype: str

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """[B, H, W, C] -> [B, H, W, K] float32."""
        shape = (features.shape[-1], self.num_classes)
        kernel = self.param("kernel", layers.conv_init, shape, jnp.float32)
        return jnp.tensordot(
            features.astype(self.dtype),
            kernel.astype(self.dtype),
            axes=1,
            preferred_element_type=jnp.float32,
        )


class RegionHead(nn.Module):
    """Two 1 x 1 convolutions, then one dense layer for every region of the map.

    Chaitanya et al. 2020, arXiv 2006.10511; all in float32.

    Attributes:
        out_dim: dimension of the embedding of a region.
    """

    out_dim: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """[B, H, W, C] of any float -> [B, R, out_dim] float32, not of unit length."""
        channels = features.shape[-1]
        x = features.astype(jnp.float32)
        x = layers.dense(channels, fan_in=channels, name="conv1")(x)
        x = layers.dense(channels, fan_in=channels, name="conv2")(nn.relu(x))
        size = regions.SIZE
        flat = [
            x[:, row : row + size, column : column + size].reshape(len(x), -1)
            for row, column in regions.starts(*x.shape[1:3])
        ]
        shape = (size * size * channels, self.out_dim)
        kernel = self.param("kernel", layers.conv_init, shape, jnp.float32)
        return jnp.stack(flat, axis=1) @ kernel


class DenseHead(nn.Module):
    """An embedding of every pixel from the maps of a decoder.

    The maps, enlarged to the size of the image, corners on corners, and joined; 3 x 3
    convolution without bias, ReLU, 1 x 1 convolution. You et al. 2023, arXiv
    2206.02307, whose code has no ReLU there.

    Attributes:
        out_dim: D, of an embedding.
        stride: pixels from one to the next; the convolution is over such.
        activate: whether there is a ReLU.
        dtype: of the computation.
    """

    out_dim: int
    stride: int
    activate: bool
    dtype: str

    @nn.compact
    def __call__(self, maps: tuple[Array, ...], size: tuple[int, ...]) -> Array:
        """Embeddings of the pixels 0, stride, 2 stride, ... of both axes.

        Args:
            maps: [B, h, w, C] each, of any scale.
            size: H and W of the image.

        Returns:
            [B, H / stride, W / stride, D] of `dtype`, rounded up.
        """
        grown = [layers.enlarge(x, size, stride=self.stride) for x in maps]
        x = jnp.concatenate(grown, axis=-1).astype(self.dtype)
        join = layers.conv3x3(
            self.out_dim,
            dtype=self.dtype,
            name="join",
            fan_in=9 * x.shape[-1],
            use_bias=False,
        )
        x = join(x)
        x = nn.relu(x) if self.activate else x
        dense = layers.dense(
            self.out_dim, fan_in=self.out_dim, name="dense", dtype=self.dtype
        )
        return dense(x)


class PyramidHead(nn.Module):
    """An embedding of every pixel from the maps of a decoder, grown level by level.

    x = f + W f of the first map; then x = j + W j of j, the enlarged x joined to the
    next map; W j alone of the last one. All W are 1 x 1 convolutions without bias. You
    et al. 2022, arXiv 2209.13476 (MONA), as their code has it.

    Attributes:
        out_dim: D, of an embedding; in the authors' code that of the last j.
        stride: pixels from one to the next; exactly those of stride 1.
        dtype: of the computation.
    """

    out_dim: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, maps: tuple[Array, ...], size: tuple[int, ...]) -> Array:
        """Embeddings of the pixels 0, stride, 2 stride, ... of both axes.

        Args:
            maps: [B, h, w, C] each, from the smallest to the largest, two or more.
            size: H and W of the image.

        Returns:
            [B, H / stride, W / stride, D] of `dtype`, rounded up.
        """
        first, *middle, last = (x.astype(self.dtype) for x in maps)
        x = first + self._layer(first, first.shape[-1], 0)
        for level, features in enumerate(middle, start=1):
            x = layers.enlarge(x, features.shape[1:3], stride=1)
            x = jnp.concatenate([x, features], axis=-1)
            x = x + self._layer(x, x.shape[-1], level)
        grown = [layers.enlarge(f, size, stride=self.stride) for f in (x, last)]
        return self._layer(jnp.concatenate(grown, -1), self.out_dim, len(maps) - 1)

    def _layer(self, x: Array, features: int, level: int) -> Array:
        """W x, of a level counted from the smallest map."""
        return layers.dense(
            features,
            fan_in=x.shape[-1],
            name=f"level{level}",
            dtype=self.dtype,
            use_bias=False,
        )(x)


class LocalHead(nn.Module):
    """Embeddings of the square windows of a map of logits.

    Mean over 8 x 8 parts of every window; then two 1 x 1 convolutions, to 2 K channels
    and back. Windows overlap by half. You et al. 2023, arXiv 2206.02307. As a part of
    one window is one of the next, the map is averaged once.

    Attributes:
        window: pixels of a side, a multiple of 8.
        activate: whether there is a ReLU between the two.
    """

    window: int
    activate: bool

    @nn.compact
    def __call__(self, logits: Array) -> Array:
        """[B, H, W, K] float32, H and W multiples of window / 8 -> parts of the map.

        Returns:
            [B, 8 H / window, 8 W / window, K] float32; see `windows_of`.
        """
        part = self.window // PARTS
        rows, height, width, channels = logits.shape
        cells = logits.reshape(
            rows, height // part, part, width // part, part, channels
        ).mean(axis=(2, 4))
        return TwoLayers(channels, 2 * channels, activate=self.activate, name="layers")(
            cells
        )


def windows_of(parts: Array) -> Array:
    """[B, h, w, K] parts of a map -> [B, R, 64 K], its R windows of 8 x 8 parts."""
    return windows.cut(parts, size=PARTS, stride=PARTS // 2)
