"""Networks on slices: encoder and decoder of one of two U-Nets, and heads on them.

`backbone` says which: "pcl", that of Zeng et al. 2021, or "ssl4mis", that of ACTION and
its kin, which drops out features in training.
"""

import flax.linen as nn
import jax

from pclseg.models import backbone_pcl, backbone_ssl4mis
from pclseg.models.heads import (
    JigsawHead,
    RegionHead,
    TwoLayers,
    global_average,
)

Array = jax.Array

BACKBONES = {"pcl": backbone_pcl, "ssl4mis": backbone_ssl4mis}


class UNet2D(nn.Module):
    """U-Net for segmentation.

    Attributes:
        width: channels of the first level.
        num_classes: K, background included.
        dtype: "float32" or "bfloat16", of the computation.
        bn_groups: see `layers.BatchNorm`.
        axis_name: of the device axis, or None.
        remat: whether to compute what lies inside a level again for the gradient, about
            a third more work, instead of keeping it, most of the memory.
        backbone: a key of `BACKBONES`.
    """

    width: int
    num_classes: int
    dtype: str
    bn_groups: int
    axis_name: str | None = None
    remat: bool = False
    backbone: str = "pcl"

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        """[B, H, W, C] float, H and W multiples of 16 -> logits [B, H, W, K] float32.

        With `train`, apply with `mutable=["batch_stats"]` and `rngs={"dropout": key}`.
        """
        shared = (self.dtype, self.bn_groups, self.axis_name, self.remat)
        paths = BACKBONES[self.backbone]
        encoder = paths.Encoder(self.width, *shared, name="encoder")
        centre, skips = encoder(images, train=train)
        decoder = paths.Decoder(self.width, self.num_classes, *shared, name="decoder")
        logits, _ = decoder(centre, skips, train=train)
        return logits


class UNet2DContrast(nn.Module):
    """Encoder of the U-Net and a projection head, for pre-training.

    Attributes:
        width: channels of the first level.
        out_dim: D, dimension of the embedding.
        dtype: "float32" or "bfloat16", of the computation of the encoder.
        bn_groups: see `layers.BatchNorm`.
        axis_name: of the device axis, or None.
        remat: whether to compute what lies inside a level again for the gradient, about
            a third more work, instead of keeping it, most of the memory.
        backbone: a key of `BACKBONES`.
    """

    width: int
    out_dim: int
    dtype: str
    bn_groups: int
    axis_name: str | None = None
    remat: bool = False
    backbone: str = "pcl"

    @property
    def drops_out(self) -> bool:
        """Whether training sets random features to 0."""
        return self.backbone == "ssl4mis"

    def setup(self) -> None:
        """Names the parts as they stand in checkpoints."""
        shared = (self.dtype, self.bn_groups, self.axis_name, self.remat)
        self.encoder = BACKBONES[self.backbone].Encoder(self.width, *shared)
        self.head = TwoLayers(self.out_dim)

    def __call__(self, images: Array, train: bool) -> Array:
        """[B, H, W, C] float, H and W multiples of 16 -> [B, D] float32, of any length.

        With `train`, apply with `mutable=["batch_stats"]` and `rngs={"dropout": key}`.
        """
        return self.head(self.features(images, train=train))

    def features(self, images: Array, train: bool) -> Array:
        """Like `__call__`, but the pooled centre: [B, 16 width] float32."""
        centre, _ = self.encoder(images, train=train)
        return global_average(centre)


class UNet2DJigsaw(UNet2DContrast):
    """The same with a second head, which embeds a slice by its patches."""

    def setup(self) -> None:
        """Names the parts as they stand in checkpoints."""
        super().setup()
        self.jigsaw_head = JigsawHead(self.out_dim)

    def pair(self, images: Array, patches: Array, train: bool) -> tuple[Array, Array]:
        """Embeds images and, in a second pass of the encoder, patches of them.

        Each pass has its own batch statistics, over B images and over P B patches; with
        `train` both move the running averages, the images first.

        Args:
            images: [B, H, W, C] float, H and W multiples of 16.
            patches: [B, P, S, S, C] float, S a multiple of 16.
            train: apply with `mutable=["batch_stats"]` and `rngs` if so.

        Returns:
            Two embeddings [B, D] float32, of any length: of images and of patches.
        """
        embedding = self(images, train=train)
        centre, _ = self.encoder(patches.reshape(-1, *patches.shape[2:]), train=train)
        features = centre.reshape(*patches.shape[:2], *centre.shape[1:])
        return embedding, self.jigsaw_head(features)


class UNet2DLocal(nn.Module):
    """Fixed encoder, decoder up to half the resolution, and a head for local regions.

    The encoder normalises by its running averages, which stay, and no gradient reaches
    it; `optimizer.frozen=("encoder",)` keeps weight decay from it.

    Attributes:
        width: channels of the first level.
        out_dim: D, dimension of the embedding of a region.
        dtype: "float32" or "bfloat16", of the computation of encoder and decoder.
        bn_groups: see `layers.BatchNorm`.
        axis_name: of the device axis, or None.
        remat: whether to compute what lies inside a level again for the gradient, about
            a third more work, instead of keeping it, most of the memory.
        backbone: a key of `BACKBONES`.
    """

    width: int
    out_dim: int
    dtype: str
    bn_groups: int
    axis_name: str | None = None
    remat: bool = False
    backbone: str = "pcl"

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        """[B, H, W, C] float, H and W multiples of 16 -> [B, R, D] float32.

        R regions as in `regions`. With `train`, apply with `mutable=["batch_stats"]`.
        """
        shared = (self.width, self.dtype, self.bn_groups, self.axis_name, self.remat)
        paths = BACKBONES[self.backbone]
        features = paths.Encoder(*shared, name="encoder")(images, train=False)
        centre, skips = jax.lax.stop_gradient(features)
        decoder = paths.LowerDecoder(*shared, name="decoder")
        x = decoder(centre, skips, train=train)
        return RegionHead(self.out_dim, name="head")(x)
