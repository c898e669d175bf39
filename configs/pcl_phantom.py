"""PCL pre-training and few-label fine-tuning on the embedded phantom; needs no data.

python -m pclseg.main --config=configs/pcl_phantom.py --workdir=runs/pcl_phantom
"""

import ml_collections

from pclseg.config import parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` is fold=0..4,labelled=M,seed=S."""
    given = parse_arg(arg, fold=0, labelled=2, seed=0)
    spatial = dict(
        name="spatial",
        resample_probability=0.67,
        elastic_alpha=(25.0, 90.0),
        elastic_sigma=(7.0, 8.5),
        scale=(0.7, 1.3),
        image_order=3,
    )

    config = ml_collections.ConfigDict()
    config.arm = "pcl"
    config.seed = given.seed
    config.stages = ("pretrain", "finetune")
    config.data = dict(
        name="phantom",
        raw_dir="data/phantom",
        store_dir="prepared",
        options=dict(volumes=24, seed=0),
        prepare=dict(
            slice_axis=2,
            spacing=(),
            clip_percentiles=(0.0, 100.0),
            integers=False,
            replace_below=(),
            image_order=3,
            label_order=1,
            workers=0,
        ),
        split=dict(
            file="",
            folds=5,
            fold_seed=12345,
            draw_seed=1234,
            fold=given.fold,
            labelled=given.labelled,
            holdout=0,
        ),
        transductive=False,
        pipeline="tf",
        device_dtype="float32",
    )
    config.pretrain = dict(
        init_from="",
        init_parts=("encoder",),
        data=dict(
            subset="train",
            crop_size=(64, 64),
            random_crop=True,
            batch_size=32,
            sampling="slices",
            last_batch="drop",
            unlabelled_batch_size=0,
        ),
        method=dict(
            name="pcl",
            temperature=0.1,
            base_temperature=0.07,
            position_threshold=0.1,
            threshold_mode="float64",
            views="separate",
            groups_in_turn=False,
            similarities="auto",
        ),
        model=dict(
            name="unet2d_contrast",
            width=8,
            out_dim=512,
            dtype="float32",
            bn_groups=1,
            remat=False,
            backbone="pcl",
        ),
        augment=dict(spatial),
        optimizer=dict(
            name="sgd",
            peak_lr=0.01,  # at 0.03 it collapses after about 100 steps
            min_lr=0.0,
            schedule="cosine",
            lr_batch_size=0,
            lr_scaling="linear",
            momentum=0.9,
            weight_decay=1e-5,
            warmup_steps=50,
            frozen=(),
        ),
        train=dict(epochs=0, steps=400, log_every=50, checkpoint_every=100, keep=2),
    )
    config.finetune = dict(
        init_from="pretrain",
        init_parts=("encoder",),
        data=dict(
            subset="labelled",
            crop_size=(64, 64),
            random_crop=True,
            batch_size=10,
            sampling="slices",
            last_batch="fill",
            unlabelled_batch_size=0,
        ),
        method=dict(name="supervised"),
        model=dict(
            name="unet2d",
            width=8,
            num_classes=3,
            dtype="float32",
            bn_groups=1,
            remat=False,
            backbone="pcl",
        ),
        augment=dict(spatial),
        optimizer=dict(
            name="adam",
            peak_lr=3e-3,  # of 1e-3 and 3e-3 the lower training loss, on fold 0
            min_lr=1e-6,
            schedule="cosine",
            lr_batch_size=0,
            lr_scaling="linear",
            momentum=0.9,
            weight_decay=1e-5,
            warmup_steps=0,
            frozen=(),
        ),
        train=dict(epochs=0, steps=700, log_every=100, checkpoint_every=100, keep=2),
    )
    config.evaluate = dict(
        every_epochs=20, batch_size=10, tolerance_mm=2.0, grid="file"
    )
    return config
