"""Networks of semi-supervised methods with a teacher: ACTION and its kin.

You et al. 2023, arXiv 2206.02307, and 2022, arXiv 2209.13476 (MONA). Student and
teacher are the same network; what the student says more than the teacher goes through a
predictor. Fields that are not described here are those of `unet2d.UNet2D`.
"""

from typing import NamedTuple

import flax.linen as nn
import jax

from pclseg.errors import UserError
from pclseg.models.heads import (
    PARTS,
    DenseHead,
    LocalHead,
    PyramidHead,
    TwoLayers,
    global_average,
    windows_of,
)
from pclseg.models.layers import dense
from pclseg.models.unet2d import BACKBONES

Array = jax.Array


class Outputs(NamedTuple):
    """What a network says of some images in distillation.

    Attributes:
        logits: [B, H, W, K] float32, or None where it does not segment.
        embeddings: name -> [B, W, D] float32, of W windows, one for the whole slice;
            not of unit length.
    """

    logits: Array | None
    embeddings: dict[str, Array]


class UNet2DDistill(nn.Module):
    """Encoder of the U-Net, projection head and predictor, for slices as wholes.

    Attributes:
        out_dim: D, dimension of the embedding.
        activate_heads: whether head and predictor have a ReLU between their two layers;
            in the authors' code they have none.
    """

    width: int
    out_dim: int
    dtype: str
    bn_groups: int
    axis_name: str | None = None
    remat: bool = False
    backbone: str = "pcl"
    activate_heads: bool = True

    def setup(self) -> None:
        """Names the parts as they stand in checkpoints."""
        shared = (self.width, self.dtype, self.bn_groups, self.axis_name, self.remat)
        self.encoder = BACKBONES[self.backbone].Encoder(*shared)
        self.head = TwoLayers(self.out_dim, activate=self.activate_heads)
        self.predictor = TwoLayers(self.out_dim, activate=self.activate_heads)

    def __call__(self, images: Array, train: bool) -> Array:
        """[B, H, W, C] float, H and W multiples of 16 -> [B, D] float32, of any length.

        With `train`, apply with `mutable=["batch_stats"]` and `rngs={"dropout": key}`.
        """
        centre, _ = self.encoder(images, train=train)
        return self.head(global_average(centre))

    def as_teacher(self, images: Array, train: bool) -> Outputs:
        """Like `__call__`, as an embedding of one window."""
        return Outputs(None, {"global": self(images, train)[:, None]})

    def as_student(self, images: Array, train: bool) -> Outputs:
        """The same after the predictor."""
        return Outputs(None, {"global": self.predictor(self(images, train))[:, None]})


class UNet2DDistillLocal(nn.Module):
    """U-Net with heads and predictors for whole slices and for windows of its logits.

    Attributes:
        out_dim: D, dimension of the embedding of a slice.
        window: side of a window in pixels, a multiple of 8; one begins at each half.
        activate_heads: as in `UNet2DDistill`.
    """

    width: int
    num_classes: int
    out_dim: int
    window: int
    dtype: str
    bn_groups: int
    axis_name: str | None = None
    remat: bool = False
    backbone: str = "pcl"
    activate_heads: bool = True

    def setup(self) -> None:
        """Names the parts as they stand in checkpoints."""
        shared = (self.dtype, self.bn_groups, self.axis_name, self.remat)
        paths, activate = BACKBONES[self.backbone], self.activate_heads
        self.encoder = paths.Encoder(self.width, *shared)
        self.decoder = paths.Decoder(self.width, self.num_classes, *shared)
        self.head = TwoLayers(self.out_dim, activate=activate)
        self.predictor = TwoLayers(self.out_dim, activate=activate)
        self.local_head = LocalHead(self.window, activate=activate)
        self.local_predictor = TwoLayers(self.num_classes, activate=activate)

    def __call__(self, images: Array, train: bool) -> Array:
        """[B, H, W, C] float, H and W multiples of 16 -> logits [B, H, W, K] float32.

        With `train`, apply with `mutable=["batch_stats"]` and `rngs={"dropout": key}`.
        """
        return self._paths(images, train)[1]

    def as_teacher(self, images: Array, train: bool) -> Outputs:
        """Like `__call__`, with an embedding "global" and one "local".

        Raises:
            UserError: windows do not fit the images.
        """
        check_window(self.window, images.shape[1:3])
        centre, logits = self._paths(images, train)
        parts = self.local_head(logits)
        whole = self.head(global_average(centre))
        return _outputs(logits, whole, parts)

    def as_student(self, images: Array, train: bool) -> Outputs:
        """The same after the predictors."""
        check_window(self.window, images.shape[1:3])
        centre, logits = self._paths(images, train)
        parts = self.local_predictor(self.local_head(logits))
        whole = self.predictor(self.head(global_average(centre)))
        return _outputs(logits, whole, parts)

    def _paths(self, images: Array, train: bool) -> tuple[Array, Array]:
        """Centre and logits."""
        centre, skips = self.encoder(images, train=train)
        logits, _ = self.decoder(centre, skips, train=train)
        return centre, logits


def _outputs(logits: Array, whole: Array, parts: Array) -> Outputs:
    return Outputs(logits, {"global": whole[:, None], "local": windows_of(parts)})


def check_window(window: int, size: tuple[int, ...]) -> None:
    """Raises UserError unless windows cover images of that size, and parts windows."""
    fits = window >= PARTS and window % PARTS == 0
    if not fits or any(n < window or n % (window // 2) for n in size):
        raise UserError(
            f"model.window is {window}; expected a multiple of {PARTS} whose half"
            f" divides the sides of the slices, {size[0]} x {size[1]} pixels, and no"
            " larger than they."
        )


class _PixelUNet(nn.Module):
    """U-Net for a head that embeds pixels.

    Attributes:
        out_dim: D, dimension of the embedding of a pixel; 496 in the code of MONA.
        stride: pixels from one that is embedded to the next; 1 in the papers. Memory
            falls with its square.
    """

    width: int
    num_classes: int
    out_dim: int
    stride: int
    dtype: str
    bn_groups: int
    axis_name: str | None = None
    remat: bool = False
    backbone: str = "pcl"

    def setup(self) -> None:
        """Names the parts as they stand in checkpoints."""
        shared = (self.dtype, self.bn_groups, self.axis_name, self.remat)
        paths = BACKBONES[self.backbone]
        self.encoder = paths.Encoder(self.width, *shared)
        self.decoder = paths.Decoder(self.width, self.num_classes, *shared)

    def __call__(self, images: Array, train: bool) -> Array:
        """[B, H, W, C] float, H and W multiples of 16 -> logits [B, H, W, K] float32.

        With `train`, apply with `mutable=["batch_stats"]` and `rngs={"dropout": key}`.
        """
        return self._maps(images, train)[0]

    def _maps(self, images: Array, train: bool) -> tuple[Array, tuple[Array, ...]]:
        """Logits; the centre and the maps of the decoder."""
        centre, skips = self.encoder(images, train=train)
        logits, maps = self.decoder(centre, skips, train=train)
        return logits, (centre, *maps)


class UNet2DDense(_PixelUNet):
    """U-Net with a head that embeds pixels.

    Attributes:
        activate_heads: whether the head has a ReLU between its two layers; in the
            authors' code it has none.
    """

    activate_heads: bool = True

    def setup(self) -> None:
        """Names the parts as they stand in checkpoints."""
        super().setup()
        self.dense_head = DenseHead(
            self.out_dim, self.stride, self.activate_heads, self.dtype
        )

    def dense(self, images: Array, train: bool) -> tuple[Array, Array]:
        """Like `__call__`, and what the head says of pixels 0, stride, 2 stride, ...

        Returns:
            Logits; embeddings [B, H / stride, W / stride, D] of `dtype`, of any length.
        """
        logits, maps = self._maps(images, train)
        return logits, self.dense_head(maps, images.shape[1:3])

    def taught(self, images: Array, train: bool) -> tuple[Array, Array]:
        """What a teacher says in place of `dense`: the same."""
        return self.dense(images, train)


class UNet2DPyramid(_PixelUNet):
    """U-Net with a pyramid that embeds pixels, and a predictor of the student on it.

    MONA, You et al. 2022, arXiv 2209.13476.
    """

    def setup(self) -> None:
        """Names the parts as they stand in checkpoints."""
        super().setup()
        self.pyramid = PyramidHead(self.out_dim, self.stride, self.dtype)
        self.predictor1, self.predictor2 = (
            dense(
                self.out_dim,
                fan_in=self.out_dim,
                name=f"predictor{i}",
                dtype=self.dtype,
                use_bias=False,
            )
            for i in (1, 2)
        )

    def taught(self, images: Array, train: bool) -> tuple[Array, Array]:
        """Like `__call__`, and what the pyramid says of pixels 0, stride, 2 stride, ...

        Returns:
            Logits; embeddings [B, H / stride, W / stride, D] of `dtype`, of any length.
        """
        logits, maps = self._maps(images, train)
        return logits, self.pyramid(maps, images.shape[1:3])

    def dense(self, images: Array, train: bool) -> tuple[Array, Array]:
        """The same after the predictor, two layers that have no ReLU."""
        logits, features = self.taught(images, train)
        return logits, self.predictor2(self.predictor1(features))
