"""TensorFlow for the input pipeline only, kept off the accelerators."""

import os

from pclseg.errors import UserError

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no start-up notes

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
