"""TensorFlow for the input pipeline only, kept off the accelerators."""

import os

from pclseg.errors import UserError

# No start-up notes; oneDNN, which would speed up networks only, writes one too.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

try:
    import tensorflow as tf
except ImportError as error:
    raise UserError(
        "config.data.pipeline is 'tf', but TensorFlow cannot be imported"
        f" ({str(error).splitlines()[0]}); set --config.data.pipeline=numpy, which"
        " gives the same batches, or pip install tensorflow."
    ) from error

# By default TensorFlow takes all memory of every accelerator that it sees.
for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)

__all__ = ["tf"]
