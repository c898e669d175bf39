r"""MONA on ACDC (cine MRI): two stages on the U-Net of SSL4MIS.

python -m pclseg.main --config=configs/mona_acdc.py --config.data.raw_dir=DIR \
    --workdir=runs/mona_acdc

Sizes and split as in `action_acdc.py`; see docs/methods/mona.md.
"""

import ml_collections

from pclseg.config import parse_arg, pick, sibling

SIZES = {
    "paper": dict(
        steps=(30000, 30000),
        model=dict(out_dim=496, stride=1),
        pixels=dict(
            num_queries=256, num_negatives=512, bank_size=30000, keys_per_step=2048
        ),
        warmup_steps=0,
        warp_weight=1.0,
        pool_cells=16,
    ),
    "cpu": dict(
        steps=(300, 1000),
        model=dict(out_dim=64, stride=4),
        pixels=dict(
            num_queries=64, num_negatives=256, bank_size=2048, keys_per_step=256
        ),
        # At this rate, ten times the authors', classes are lost without a warm-up and
        # with warps at 1: docs/results.md
        warmup_steps=200,
        warp_weight=0.1,
        pool_cells=8,
    ),
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_acdc.py`."""
    given = parse_arg(arg, size="paper", fold=0, labelled=2, seed=0)
    size = pick("size", given.size, SIZES)
    config = sibling(__file__, "action_acdc.py", arg)
    config.arm = "mona"
    config.stages = ("pretrain", "finetune")
    config.pretrain = config.local
    del config.local
    config.pretrain.init_from = ""
    config.pretrain.method.strong.brightness = (0.8, 1.2)
    config.pretrain.method.strong.contrast = (0.8, 1.2)
    stage = config.finetune
    stage.init_from = "pretrain"
    for one, steps in zip((config.pretrain, stage), size["steps"], strict=True):
        one.train.steps = steps
    config.pretrain.method.temperature_period = size["steps"][0]
    stage.optimizer.warmup_steps = size["warmup_steps"]
    del stage.model.activate_heads
    stage.model = dict(stage.model, name="unet2d_pyramid", **size["model"])
    stage.method = dict(
        name="mona",
        supervised_weight=2.0,  # cross entropy + Dice, where half and half is 1
        strong=dict(stage.method.strong),
        mix_mode="cutmix",
        pseudo_weight=1.0,
        pseudo_pixels="all",
        hard_threshold=0.97,
        teacher_momentum=0.99,
        teacher_mode="eval",
        contrast_weight=0.01,
        contrast_temperature=0.5,
        sampler="naive",
        sampler_cells=(4, 4),
        query_threshold=0.3,
        key_threshold=0.97,
        key_rule="other_class",
        entropy_of="student",
        entropy_percent=20.0,
        entropy_steps=size["steps"][1],  # to be changed with the steps
        warp_weight=size["warp_weight"],
        warp=dict(
            degrees=(-60.0, 60.0),
            scale=(1 / 1.2, 1 / 0.8),
            shift=0.1,
            jitter=0.01,
            mirror_probability=0.5,
        ),
        sure_threshold=0.7,
        neighbour_weight=0.01,  # the paper's 1 embeds all pixels alike
        neighbours=5,
        pool_size=36,
        pool_cells=size["pool_cells"],
        **size["pixels"],
    )
    return config
