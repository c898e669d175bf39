r"""PCL pre-training and few-label fine-tuning on CHD (cardiac CT, 68 patients).

python -m pclseg.main --config=configs/pcl_chd.py:fold=0,labelled=2 \
    --config.data.raw_dir=DIR --workdir=runs/pcl_chd

Everything as PCL's authors have it for CHD: native pixels, patches of 512 x 512, width
32, threshold 0.1, 300 + 100 epochs, fine-tuning without augmentation from learning rate
5e-5 to 5e-6 as their README says (their run script ends at 1e-6). Two things differ:
pre-training leaves out the validation patients, whose images theirs sees
(--config.data.transductive=True does as they do), and `tolerance_mm` is ours.

Never trained here: only dry-run, on made-up volumes under the names of the real ones.
"""

import ml_collections

from pclseg.config import parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` is fold=0..4,labelled=M,seed=S; the authors have M=40 too."""
    given = parse_arg(arg, fold=0, labelled=2, seed=0)

    config = ml_collections.ConfigDict()
    config.arm = "pcl"
    config.seed = given.seed
    config.stages = ("pretrain", "finetune")
    config.data = dict(
        name="chd",
        raw_dir="data/CHD",
        store_dir="prepared",
        options=dict(),
        prepare=dict(
            slice_axis=2,
            spacing=(),
            clip_percentiles=(1.0, 99.0),
            integers=True,  # the limits, too
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
            crop_size=(512, 512),
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
            width=32,
            out_dim=512,
            dtype="float32",
            bn_groups=1,
            remat=False,
            backbone="pcl",
        ),
        augment=dict(
            name="spatial",
            resample_probability=0.67,
            elastic_alpha=(100.0, 350.0),
            elastic_sigma=(14.0, 17.0),
            scale=(0.7, 1.3),
            image_order=3,
        ),
        optimizer=dict(
            name="sgd",
            peak_lr=0.1,
            min_lr=0.0,
            schedule="cosine",
            lr_batch_size=0,
            lr_scaling="linear",
            momentum=0.9,
            weight_decay=1e-5,
            warmup_steps=0,
            frozen=(),
        ),
        train=dict(epochs=300, steps=0, log_every=50, checkpoint_every=1000, keep=2),
    )
    config.finetune = dict(
        init_from="pretrain",
        init_parts=("encoder",),
        data=dict(
            subset="labelled",
            crop_size=(512, 512),
            random_crop=True,  # of no effect on slices of 512 x 512
            batch_size=10,
            sampling="slices",
            last_batch="fill",
            unlabelled_batch_size=0,
        ),
        method=dict(name="supervised"),
        model=dict(
            name="unet2d",
            width=32,
            num_classes=8,
            dtype="float32",
            bn_groups=1,
            remat=False,
            backbone="pcl",
        ),
        augment=dict(name="none"),
        optimizer=dict(
            name="adam",
            peak_lr=5e-5,
            min_lr=5e-6,
            schedule="cosine",
            lr_batch_size=0,
            lr_scaling="linear",
            momentum=0.9,
            weight_decay=1e-5,
            warmup_steps=0,
            frozen=(),
        ),
        train=dict(epochs=100, steps=0, log_every=50, checkpoint_every=500, keep=2),
    )
    config.evaluate = dict(every_epochs=2, batch_size=10, tolerance_mm=2.0, grid="file")
    return config
