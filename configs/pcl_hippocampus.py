r"""PCL pre-training and few-label fine-tuning on MSD Task04 Hippocampus (T1 MRI).

python -m pclseg.main --config=configs/pcl_hippocampus.py --config.data.raw_dir=DIR \
    --workdir=runs/pcl_hippocampus

Slices across axis 1 (posterior to anterior), the one along which the anatomy changes
most; whole slices of at most 43 x 47 pixels at 1 mm. Ours, no paper has it: threshold
0.1, width 16, sized for two CPU cores.
"""

import ml_collections

from pclseg.config import parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` is fold=0..4,labelled=M,seed=S."""
    given = parse_arg(arg, fold=0, labelled=2, seed=0)
    spatial = dict(
        name="spatial",
        resample_probability=0.67,
        elastic_alpha=(10.0, 35.0),
        elastic_sigma=(4.0, 5.0),
        scale=(0.7, 1.3),
        image_order=3,
    )

    config = ml_collections.ConfigDict()
    config.arm = "pcl"
    config.seed = given.seed
    config.stages = ("pretrain", "finetune")
    config.data = dict(
        name="msd",
        raw_dir="data/Task04_Hippocampus",
        store_dir="prepared",
        options=dict(label_values=(), channels=(0,)),
        prepare=dict(
            slice_axis=1,
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
            crop_size=(48, 48),
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
            width=16,
            out_dim=512,
            dtype="float32",
            bn_groups=1,
            remat=False,
            backbone="pcl",
        ),
        augment=dict(spatial),
        optimizer=dict(
            name="sgd",
            peak_lr=0.03,  # 0.1 without warm-up collapses in about ten steps
            min_lr=0.0,
            schedule="cosine",
            lr_batch_size=0,
            lr_scaling="linear",
            momentum=0.9,
            weight_decay=1e-5,
            warmup_steps=50,
            frozen=(),
        ),
        train=dict(epochs=0, steps=1000, log_every=50, checkpoint_every=200, keep=2),
    )
    config.finetune = dict(
        init_from="pretrain",
        init_parts=("encoder",),
        data=dict(
            subset="labelled",
            crop_size=(48, 48),
            random_crop=True,
            batch_size=10,
            sampling="slices",
            last_batch="fill",
            unlabelled_batch_size=0,
        ),
        method=dict(name="supervised"),
        model=dict(
            name="unet2d",
            width=16,
            num_classes=3,
            dtype="float32",
            bn_groups=1,
            remat=False,
            backbone="pcl",
        ),
        augment=dict(spatial),
        optimizer=dict(
            name="adam",
            peak_lr=3e-3,  # of 1e-3 and 3e-3 the better for scratch on fold 0
            min_lr=1e-6,
            schedule="cosine",
            lr_batch_size=0,
            lr_scaling="linear",
            momentum=0.9,
            weight_decay=1e-5,
            warmup_steps=0,
            frozen=(),
        ),
        train=dict(epochs=0, steps=1500, log_every=50, checkpoint_every=200, keep=2),
    )
    config.evaluate = dict(
        every_epochs=50, batch_size=10, tolerance_mm=1.0, grid="file"
    )
    return config
