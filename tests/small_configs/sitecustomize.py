"""Makes every config small in any Python that has this folder in its PYTHONPATH.

So the commands of the documents run as they stand there, in seconds.
"""

from pclseg import config as configs

load = configs.load_config


def small(argument):
    """The config, with two steps a stage on a network of width 2, not augmented."""
    config = load(argument)
    with config.unlocked():
        for stage in config.get("stages", ()):
            config[stage].train.update(epochs=0, steps=2, log_every=1)
            config[stage].data.update(batch_size=4, crop_size=(32, 32))
            config[stage].model.width = 2
            config[stage].augment = dict(name="none")  # most of what compiling takes
            if "out_dim" in config[stage].model:
                config[stage].model.out_dim = 4
        if "data" in config:
            config.data.pipeline = "numpy"  # does not import TensorFlow
            config.data.prepare.workers = 1
    return config


configs.load_config = small
