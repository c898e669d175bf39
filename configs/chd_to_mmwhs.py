r"""Few-label fine-tuning on MM-WHS (cardiac CT) of an encoder pre-trained on CHD.

python -m pclseg.main --config=configs/pcl_chd.py --config.data.raw_dir=CHD_DIR \
    --config.stages="('pretrain',)" --config.data.transductive=True \
    --workdir=runs/pcl_chd
python -m pclseg.main --config=configs/chd_to_mmwhs.py:source=runs/pcl_chd/pretrain \
    --config.data.raw_dir=MMWHS_DIR --workdir=runs/chd_to_mmwhs

As PCL's authors have it: pixels of 1 mm, centre patches of 256 x 256 without
augmentation (they train on validation transforms here), width 32 as in their run script
(their README's 48 does not fit the CHD encoder), learning rate 5e-5 to 5e-6. No patient
of MM-WHS is in CHD, so pre-training may see all of CHD. `tolerance_mm` is ours.

Never trained here: only dry-run, on made-up volumes under the names of the real ones.
"""

import ml_collections

from pclseg.config import parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` is source=RUN/STAGE,fold=0..4,labelled=M,seed=S.

    source: folder of a finished pre-training of width 32, by any method; name the run
        in tables by --config.arm where runs from several sources are compared.
    """
    given = parse_arg(arg, source="runs/pcl_chd/pretrain", fold=0, labelled=2, seed=0)

    config = ml_collections.ConfigDict()
    config.arm = "chd_to_mmwhs"
    config.seed = given.seed
    config.stages = ("finetune",)
    config.data = dict(
        name="mmwhs",
        raw_dir="data/MMWHS",
        store_dir="prepared",
        options=dict(),
        prepare=dict(
            slice_axis=2,
            spacing=(1.0, 1.0),
            clip_percentiles=(1.0, 99.0),
            integers=True,  # after resampling; the limits, too
            replace_below=(-2000.0, -1110.0),  # outside of the field of view
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
            crop_size=(256, 256),
            random_crop=False,
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
