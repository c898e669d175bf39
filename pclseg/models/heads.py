"""What stands on top of the encoder or the decoder."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pclseg import regions
from pclseg.models import layers

Array = jax.Array


def global_average(features: Array) -> Array:
    """[B, H, W, C] of any float -> [B, C] float32, the mean over all places."""
    return features.astype(jnp.float32).mean(axis=(1, 2))


class ProjectionHead(nn.Module):
    """Global average, dense layer, ReLU, dense layer; all in float32.

    Attributes:
        out_dim: dimension of the embedding.
    """

    out_dim: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """[B, H, W, C] of any float -> [B, out_dim] float32, not of unit length."""
        channels = features.shape[-1]
        x = global_average(features)
        x = layers.dense(channels, fan_in=channels, name="dense1")(x)
        return layers.dense(self.out_dim, fan_in=channels, name="dense2")(nn.relu(x))


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
        projected = ProjectionHead(self.out_dim, name="patch")(flat)
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
