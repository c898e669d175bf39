r"""ACTION, ACTION++ and what they stand beside, on ACDC, in the split of SSL4MIS.

python -m pclseg.cli.grid configs/grids/acdc_semi.py --out=runs/acdc_semi --jobs=2 \
    --set=data.raw_dir=data/ACDC

All arms: the U-Net of SSL4MIS, the same labelled slices, augmentation, optimiser and
steps of fine-tuning. For the sizes of the papers:
configs/grids/acdc_semi.py:size=paper.
"""

import ml_collections

from pclseg.config import parse_arg

ARMS = (
    "configs/ssl4mis_scratch_acdc.py",
    "configs/ssl4mis_mean_teacher_acdc.py",
    "configs/action_acdc.py",
    "configs/action_pp_acdc.py",
    "configs/pcl_action_pp_acdc.py",
)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The grid; `arg` is size=cpu|paper."""
    given = parse_arg(arg, size="cpu")
    config = ml_collections.ConfigDict()
    config.arms = ARMS
    config.argument = f"size={given.size}"
    config.labelled = (1, 3, 7)
    config.folds = (0,)
    config.seeds = (0, 1, 2)
    config.settings = (
        "data.split.file=configs/splits/acdc_ssl4mis.json",
        "evaluate.grid=prepared",  # as all that docs/results.md has of ACDC
    )
    config.tune = dict(
        key="finetune.optimizer.peak_lr",
        candidates=(),
        labelled=(3,),
        fold=0,
        seed=0,
        holdout=10,
    )
    return config
