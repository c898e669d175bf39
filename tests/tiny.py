"""A run of seconds on a phantom of ten volumes; `pclseg.main` in its own process."""

import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections
from quick_compilation import XLA_FLAGS

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "pcl_phantom.py"

# Small enough that a step takes milliseconds; both stages validate or save in between.
OVERRIDES = {
    "data.options.volumes": 10,
    "data.prepare.workers": 1,
    "data.pipeline": "numpy",  # does not import TensorFlow, which takes seconds
    "pretrain.data.crop_size": (32, 32),
    "pretrain.data.batch_size": 8,
    "pretrain.model.width": 2,
    "pretrain.optimizer.peak_lr": 0.01,  # 0.1 lets so small a model collapse
    "pretrain.model.out_dim": 8,
    "pretrain.train.steps": 24,
    "pretrain.train.log_every": 4,
    "pretrain.train.checkpoint_every": 5,
    "finetune.data.crop_size": (32, 32),
    "finetune.data.batch_size": 8,
    "finetune.model.width": 2,
    "finetune.train.steps": 24,
    "finetune.train.log_every": 4,
    "finetune.train.checkpoint_every": 5,
    "evaluate.every_epochs": 1,
}


def tiny_overrides(raw_dir: Path, store_dir: Path) -> dict[str, object]:
    """Key of the config -> value, for a tiny run whose phantom and store lie there."""
    return {
        **OVERRIDES,
        "data.raw_dir": str(raw_dir),
        "data.store_dir": str(store_dir),
    }


def tiny_config(raw_dir: Path, store_dir: Path) -> ml_collections.ConfigDict:
    """configs/pcl_phantom.py, made tiny."""
    config = runpy.run_path(str(CONFIG))["get_config"]()
    config.update_from_flattened_dict(tiny_overrides(raw_dir, store_dir))
    return config


def tiny_args(
    raw_dir: Path,
    store_dir: Path,
    workdir: Path,
    *,
    arm: str = "pcl",
    **more: object,
) -> list[str]:
    """Arguments of pclseg.main for `tiny_config`, or for configs/ARM_phantom.py.

    Keys of `more` are those of the config with `__` for a dot.
    """
    values = tiny_overrides(raw_dir, store_dir)
    values |= {key.replace("__", "."): value for key, value in more.items()}
    return [
        f"--config={CONFIG.with_name(f'{arm}_phantom.py')}",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in values.items()),
    ]


def main_command(args: Sequence[str]) -> list[str]:
    """The command line of `python -m pclseg.main`."""
    return [sys.executable, "-m", "pclseg.main", *args]


def main_env(
    *, cache: Path | None = None, devices: int = 1, **more: str
) -> dict[str, str]:
    """The environment of a child: `devices` virtual CPUs, compiled steps in `cache`."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {XLA_FLAGS}",
        **more,
    }
    if cache is not None:
        env |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
    return env


def run_main(
    args: Sequence[str], *, env: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m pclseg.main` to its end in another process."""
    return subprocess.run(
        main_command(args),
        cwd=ROOT,
        env=dict(main_env() if env is None else env),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
