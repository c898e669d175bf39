r"""ACTION on ACDC (cine MRI): three stages on the U-Net of SSL4MIS.

python -m pclseg.main --config=configs/action_acdc.py --config.data.raw_dir=DIR \
    --workdir=runs/action_acdc
python -m pclseg.main --config=configs/action_acdc.py:size=cpu,labelled=3 ...

Sizes: `paper`, the authors' steps and batches; `cpu`, for two cores. Split of the
authors: --config.data.split.file=configs/splits/acdc_ssl4mis.json. See
docs/methods/action.md.
"""

import ml_collections

from pclseg.config import parse_arg, pick, sibling

SIZES = {
    "paper": dict(
        crop_size=(256, 256),
        window=64,
        width=16,
        batches=(6, 3, 4),
        out_dim=512,
        rates=(0.01, 0.01, 0.01),
        steps=(30000, 30000, 30000),
        stride=1,
        pixels=dict(num_anchors=256, num_negatives=512),
    ),
    "cpu": dict(
        crop_size=(96, 96),
        window=24,
        width=8,
        batches=(12, 4, 4),
        out_dim=128,
        # of 0.01, 0.03 and 0.1 the best for labelled slices alone, on validation
        rates=(0.03, 0.03, 0.1),
        steps=(600, 300, 1000),
        stride=4,
        pixels=dict(num_anchors=64, num_negatives=256),
    ),
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_acdc.py`."""
    given = parse_arg(arg, size="paper", fold=0, labelled=2, seed=0)
    size = pick("size", given.size, SIZES)
    config = sibling(__file__, "scratch_acdc.py", arg)
    strong = dict(
        name="photometric",
        jitter_probability=0.5,
        brightness=(0.75, 1.25),
        contrast=(0.75, 1.25),
        blur_probability=0.5,
        blur_sigma=(0.15, 1.15),
    )
    distillation = dict(
        strong=strong,
        bank_size=36,
        student_temperature=(0.1, 0.1),
        teacher_temperature=(0.01, 0.01),
        reverse_kl=False,
        teacher_momentum=0.99,
        teacher_mode="eval",
    )

    config.arm = "action"
    config.stages = ("pretrain", "local", "finetune")
    config.evaluate.every_epochs = 50  # of the few labelled slices: short ones
    stage = config.finetune
    stage.data.crop_size = size["crop_size"]
    stage.augment = dict(
        name="turns",
        turn_probability=0.5,
        rotate_probability=0.5,
        degrees=(-20.0, 20.0),
        image_order=1,
    )
    stage.optimizer = dict(
        stage.optimizer,
        name="sgd",
        min_lr=0.0,
        schedule="poly",
        momentum=0.9,
        weight_decay=1e-4,
    )
    model = dict(stage.model, width=size["width"], backbone="ssl4mis")
    heads = dict(model, out_dim=512, activate_heads=True)
    encoder_heads = {key: heads[key] for key in heads if key != "num_classes"}
    slices_of_wholes, slices_of_windows, slices_of_pixels = size["batches"]
    optimizers = [dict(stage.optimizer, peak_lr=rate) for rate in size["rates"]]
    steps = [dict(stage.train, epochs=0, steps=number) for number in size["steps"]]

    config.pretrain = dict(
        stage,
        data=dict(
            stage.data, subset="train", batch_size=slices_of_wholes, last_batch="drop"
        ),
        model=dict(encoder_heads, name="unet2d_distill"),
        method=dict(
            distillation, name="action_global", temperature_period=size["steps"][0]
        ),
        optimizer=optimizers[0],
        train=steps[0],
    )
    config.local = dict(
        stage,
        init_from="pretrain",
        init_parts=(
            "encoder",
            "head",
            "predictor",
            "teacher/encoder",
            "teacher/head",
        ),
        data=dict(
            stage.data,
            batch_size=slices_of_windows,
            unlabelled_batch_size=slices_of_windows,
        ),
        model=dict(heads, name="unet2d_distill_local", window=size["window"]),
        method=dict(
            distillation,
            name="action_local",
            temperature_period=size["steps"][1],  # to be changed with the steps
            global_weight=1.0,
            local_weight=1.0,
        ),
        optimizer=optimizers[1],
        train=steps[1],
    )
    config.finetune = dict(
        stage,
        init_from="local",
        init_parts=("encoder", "decoder"),
        data=dict(
            stage.data,
            batch_size=slices_of_pixels,
            unlabelled_batch_size=slices_of_pixels,
        ),
        model=dict(
            heads, name="unet2d_dense", out_dim=size["out_dim"], stride=size["stride"]
        ),
        method=dict(
            name="action",
            strong=strong,
            mix_mode="cutmix",
            pseudo_weight=1.0,
            pseudo_pixels="all",
            contrast_weight=0.01,
            contrast_temperature=(0.5, 0.5),
            temperature_period=size["steps"][2],
            sampler="naive",
            sampler_cells=(4, 4),
            sure_threshold=0.7,
            hard_threshold=0.97,
            teacher_momentum=0.99,
            teacher_mode="eval",
            **size["pixels"],
        ),
        optimizer=dict(optimizers[2], name="nesterov"),
        train=steps[2],
    )
    return config
