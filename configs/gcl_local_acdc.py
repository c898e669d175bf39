r"""GCL proper with its second stage, the local loss; else `gcl_proper_acdc.py`.

python -m pclseg.main --config=configs/gcl_local_acdc.py \
    --workdir=runs/gcl_local_acdc

Pre-training takes twice the steps of the other arms: `local` as many as `pretrain`.
"""

import ml_collections

from pclseg.config import sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_acdc.py`."""
    config = sibling(__file__, "gcl_proper_acdc.py", arg)
    pretrain = config.pretrain
    config.arm = "gcl_local"
    config.stages = ("pretrain", "local", "finetune")
    config.local = dict(
        init_from="pretrain",
        init_parts=("encoder",),
        data=dict(pretrain.data, sampling="slices"),
        method=dict(
            name="gcl_local", near_regions=5, temperature=0.1, views="separate"
        ),
        model=dict(pretrain.model, name="unet2d_local", out_dim=128),
        augment=dict(
            name="intensity", brightness=(-0.3, 0.3), contrast=(0.7, 1.3), clip=()
        ),
        optimizer=dict(
            name="adam",
            peak_lr=1e-3,
            min_lr=1e-3,  # constant, as in the paper
            schedule="cosine",
            lr_batch_size=0,
            lr_scaling="linear",
            momentum=0.9,
            weight_decay=0.0,
            warmup_steps=0,
            frozen=("encoder",),
        ),
        train=dict(pretrain.train),
    )
    config.finetune.init_from = "local"
    config.finetune.init_parts = (
        "encoder",
        "decoder/up4",
        "decoder/level4",
        "decoder/up3",
        "decoder/level3",
        "decoder/up2",
        "decoder/level2",
    )
    return config
