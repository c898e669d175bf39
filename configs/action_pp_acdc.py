r"""ACTION++ on ACDC (cine MRI): two stages, all temperatures rise and fall.

python -m pclseg.main --config=configs/action_pp_acdc.py --config.data.raw_dir=DIR \
    --workdir=runs/action_pp_acdc

Sizes and split as in `action_acdc.py`; see docs/methods/action_pp.md.
"""

import ml_collections

from pclseg.config import parse_arg, pick, sibling

SIZES = {
    "paper": dict(steps=(10000, 20000), labelled_anchors=256, bank_size=12288),
    "cpu": dict(steps=(300, 1000), labelled_anchors=64, bank_size=3072),
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config; `arg` as in `pcl_acdc.py`."""
    given = parse_arg(arg, size="paper", fold=0, labelled=2, seed=0)
    size = pick("size", given.size, SIZES)
    config = sibling(__file__, "action_acdc.py", arg)
    config.arm = "action_pp"
    config.stages = ("pretrain", "finetune")
    config.pretrain = config.local
    del config.local
    config.pretrain.init_from = ""
    config.finetune.init_from = "pretrain"
    for stage, steps in zip(
        (config.pretrain, config.finetune), size["steps"], strict=True
    ):
        stage.train.steps = steps
        stage.method.temperature_period = steps  # to be changed with the steps
    config.pretrain.method.student_temperature = (0.1, 1.0)
    config.pretrain.method.teacher_temperature = (0.01, 1.0)
    config.finetune.model.out_dim = 128
    config.finetune.method = dict(
        config.finetune.method,
        name="action_pp",
        contrast_temperature=(0.1, 1.0),
        labelled_weight=0.01,
        labelled_temperature=(0.1, 1.0),
        labelled_anchors=size["labelled_anchors"],
        anchors_below=2.0,
        bank_size=size["bank_size"],
        centre_weight=0.2,
        centre_mode="mean",
        centres="simplex",
        centre_seed=0,
        mean_rate=0.1,
    )
    return config
