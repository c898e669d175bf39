r"""Few-label fine-tuning on HVSMR 2016 (cardiac MRI) of an encoder from ACDC.

python -m pclseg.main --config=configs/pcl_acdc.py --config.data.raw_dir=ACDC_DIR \
    --config.stages="('pretrain',)" --config.data.transductive=True \
    --workdir=runs/pcl_acdc
python -m pclseg.main --config=configs/acdc_to_hvsmr.py:source=runs/pcl_acdc/pretrain \
    --config.data.raw_dir=HVSMR_DIR --workdir=runs/acdc_to_hvsmr

As PCL's authors have it: pixels of 0.7 mm, random patches of 352 x 352 with spatial
augmentation, width 48, 3 classes, learning rate 5e-5 to 5e-6 as in their run script.
100 epochs is what their other commands have; none is published for HVSMR. No patient of
HVSMR is in ACDC, so pre-training may see all of ACDC. `tolerance_mm` is ours.

Never trained here: only dry-run, on made-up volumes under the names of the real ones.
"""

import ml_collections

from pclseg.config import parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` is source=RUN/STAGE,fold=0..4,labelled=M,seed=S.

    source: folder of a finished pre-training of width 48, by any method; name the run
        in tables by --config.arm where runs from several sources are compared.
    """
    given = parse_arg(arg, source="runs/pcl_acdc/pretrain", fold=0, labelled=2, seed=0)

    config = ml_collections.ConfigDict()
    config.arm = "acdc_to_hvsmr"
    config.seed = given.seed
    config.stages = ("finetune",)
    config.data = dict(
        name="hvsmr",
        raw_dir="data/HVSMR",
        store_dir="prepared",
        options=dict(),
        prepare=dict(
            slice_axis="file",  # the third: short-axis slices, whatever the header says
            spacing=(0.7, 0.7),
            clip_percentiles=(1.0, 99.0),
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
    config.finetune = dict(
        init_from=given.source,
        init_parts=("encoder",),
        data=dict(
            subset="labelled",
            crop_size=(352, 352),
            random_crop=True,
            batch_size=10,
            sampling="slices",
            last_batch="fill",
            unlabelled_batch_size=0,
        ),
        method=dict(name="supervised"),
        model=dict(
            name="unet2d",
            width=48,
            num_classes=3,
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
