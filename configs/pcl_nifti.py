r"""PCL pre-training and few-label fine-tuning on your own NIfTI volumes.

Nothing has to be renamed or moved. Say where the files are and look, then train:

python -m pclseg.main --dry_run --config.data.raw_dir=DIR \
    --config=configs/pcl_nifti.py:images=scans,labels=masks,classes=3
python -m pclseg.main --workdir=runs/mine --config.data.raw_dir=DIR \
    --config=configs/pcl_nifti.py:images=scans,labels=masks,classes=3

A volume without a label is used for pre-training only; that is the point of it. The
baseline on the same patients is configs/scratch_nifti.py with the same arguments. One
value is changed with --config.KEY=VALUE, for instance a pattern with a comma in it.
"""

import ml_collections

from pclseg.config import parse_arg, pick

SIZES = {
    # The authors' settings for CT, at half of their 512 pixels; --dry_run tells memory.
    "gpu": dict(
        crop=256,
        width=32,
        batch_size=32,
        pretrain=dict(epochs=300, steps=0, log_every=50, checkpoint_every=1000, keep=2),
        finetune=dict(epochs=100, steps=0, log_every=50, checkpoint_every=500, keep=2),
        every_epochs=2,
    ),
    # For two CPU cores, and the first thing to try.
    "cpu": dict(
        crop=96,
        width=16,
        batch_size=16,
        pretrain=dict(epochs=0, steps=400, log_every=20, checkpoint_every=100, keep=2),
        finetune=dict(epochs=0, steps=400, log_every=50, checkpoint_every=100, keep=2),
        every_epochs=20,
    ),
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    r"""The config; `arg` is name=value,name=value,... of the following.

    images: folder or pattern of the images below raw_dir, such as scans/*.nii.gz or
        **/t1.nii.gz; a 4-D file is the frames of one patient.
    labels: the same of the labels; a label belongs to the image of the same name, or of
        the same folder.
    more_images: the same of a second channel, where images have two; of more, set
        config.data.options.more_images.
    patient: regular expression whose group is the patient in the path of an image, such
        as (sub-\d+); without it every file is a patient. Volumes of one patient never
        end on both sides of a split.
    classes: number of classes, background included.
    size: gpu or cpu.
    crop: side of the square patch in pixels, a multiple of 16; 0 takes that of size.
        Smaller slices are padded to it; larger ones are cropped at random.
    spacing: of the resampled pixels in mm; 0 keeps the pixels of the files, which is
        right where all files agree.
    fold, labelled, seed: which fifth of the patients is held out, how many patients'
        labels fine-tuning sees, and the seed of all that is random.
    """
    given = parse_arg(
        arg,
        images="images",
        labels="labels",
        more_images="",
        patient="",
        classes=2,
        size="gpu",
        crop=0,
        spacing=0.0,
        fold=0,
        labelled=2,
        seed=0,
    )
    size = pick("size", given.size, SIZES)
    crop = given.crop or size["crop"]
    # the elastic field of the authors' 352 pixels, shrunk with the patch
    shrink = crop / 352
    spatial = dict(
        name="spatial",
        resample_probability=0.67,
        elastic_alpha=(100.0 * shrink**2, 350.0 * shrink**2),
        elastic_sigma=(14.0 * shrink, 17.0 * shrink),
        scale=(0.7, 1.3),
        image_order=3,
    )

    config = ml_collections.ConfigDict()
    config.arm = "pcl"  # the name of this kind of run in tables
    config.seed = given.seed
    config.stages = ("pretrain", "finetune")
    config.data = dict(
        name="nifti",
        raw_dir="data",  # what patterns start from
        store_dir="prepared",  # prepared once, used by every run
        options=dict(
            images=given.images,
            labels=given.labels,
            more_images=(given.more_images,) if given.more_images else (),
            channels=(),  # of 4-D images, by number; () takes frames for volumes
            match="",  # regular expression, where names of image and label differ a lot
            patient=given.patient,
            patient_csv="",  # or a table with the columns file,patient
            # Values in the label files, the background first; () reads all to see.
            label_values=(),
            class_names=(),  # in tables, ("background", "liver"); () makes them up
        ),
        prepare=dict(
            slice_axis="auto",  # the axis of the thickest slices; or 0, 1, 2 = x, y, z
            spacing=(given.spacing, given.spacing),
            # Bright specks and metal would spoil the normalisation.
            clip_percentiles=(1.0, 99.0),
            integers=False,  # True truncates, as the authors do for CT
            replace_below=(),  # or (limit, value), such as (-2000.0, -1110.0)
            image_order=3,
            label_order=1,
            workers=0,  # as many as there are cores to use
        ),
        split=dict(
            file="",  # or your own splits.json
            folds=5,
            fold_seed=12345,
            draw_seed=1234,
            fold=given.fold,
            labelled=given.labelled,
            holdout=0,
        ),
        transductive=False,  # True lets pre-training see images it is tested on
        pipeline="tf",  # "numpy" needs no TensorFlow and gives the same batches
        device_dtype="float32",
    )
    config.pretrain = dict(
        init_from="",
        init_parts=("encoder",),
        data=dict(
            subset="train",  # all volumes but those held out
            crop_size=(crop, crop),
            random_crop=True,
            batch_size=size["batch_size"],
            sampling="slices",
            last_batch="drop",
            unlabelled_batch_size=0,
        ),
        method=dict(
            name="pcl",
            temperature=0.1,
            base_temperature=0.07,
            # Slices nearer than this share of the volume's height are positives. The
            # authors: 0.1 for CT with hundreds of slices, 0.35 for stacks of about ten.
            position_threshold=0.1,
            threshold_mode="float64",
            views="separate",
            groups_in_turn=False,
            similarities="auto",
        ),
        model=dict(
            name="unet2d_contrast",
            width=size["width"],
            out_dim=512,
            dtype="float32",
            bn_groups=1,
            remat=False,
            backbone="pcl",
        ),
        augment=dict(spatial),
        optimizer=dict(
            name="sgd",
            peak_lr=0.03,
            min_lr=0.0,
            schedule="cosine",
            lr_batch_size=0,
            lr_scaling="linear",
            momentum=0.9,
            weight_decay=1e-5,
            warmup_steps=100,
            frozen=(),
        ),
        train=size["pretrain"],
    )
    config.finetune = dict(
        init_from="pretrain",  # or RUN/pretrain of another run
        init_parts=("encoder",),
        data=dict(
            subset="labelled",  # the drawn patients
            crop_size=(crop, crop),
            random_crop=True,
            batch_size=10,
            sampling="slices",
            last_batch="fill",
            unlabelled_batch_size=0,
        ),
        method=dict(name="supervised"),
        model=dict(
            name="unet2d",
            width=size["width"],  # that of pretrain
            num_classes=given.classes,
            dtype="float32",
            bn_groups=1,
            remat=False,
            backbone="pcl",
        ),
        augment=dict(spatial),
        optimizer=dict(
            name="adam",
            peak_lr=1e-3,
            min_lr=1e-6,
            schedule="cosine",
            lr_batch_size=0,
            lr_scaling="linear",
            momentum=0.9,
            weight_decay=1e-5,
            warmup_steps=0,
            frozen=(),
        ),
        train=size["finetune"],
    )
    config.evaluate = dict(
        every_epochs=size["every_epochs"],
        batch_size=10,
        tolerance_mm=2.0,  # of the surface Dice: what you would not correct by hand
        grid="file",  # scores of the files in predictions/
    )
    return config
