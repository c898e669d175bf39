"""What all tests share: eight virtual CPU devices, strict ranks, the real volumes."""

import os
from pathlib import Path

import pytest
from hide_tensorflow import hide_tensorflow

ROOT = Path(__file__).resolve().parents[1]

# Before the first import of jax, which reads both. JAX_PLATFORMS=cuda reaches `-m gpu`.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption(
        "--without-tensorflow",
        action="store_true",
        help="run as if TensorFlow were not installed, without the tests marked tf",
    )


def pytest_configure(config):
    if config.getoption("--without-tensorflow"):
        hide_tensorflow()
        config.option.markexpr = f"({config.option.markexpr}) and not tf"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real volumes, beside the repository; skips where absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs real volumes in ../shared/data, which is absent")
    return folder
