"""No augmentation: images and labels pass through."""

import jax

from pclseg.augment import Augment


def make() -> Augment:
    """The identity, for stages that train on the slices as they are."""

    def augment(
        keys: jax.Array, images: jax.Array, labels: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        del keys
        return images, labels

    return augment
