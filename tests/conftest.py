"""What all tests share: eight virtual CPU devices, strict ranks, the real volumes."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hide_tensorflow import hide_tensorflow
from quick_compilation import XLA_FLAGS

ROOT = Path(__file__).resolve().parents[1]

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX_PLATFORMS=cuda,cpu reaches `-m gpu`
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


def _start_jax(flags: str) -> None:
    """Starts jax under XLA flags that the processes of a test do not inherit."""
    before = os.environ.get("XLA_FLAGS")
    os.environ["XLA_FLAGS"] = f"{before or ''} {flags}"
    jax.devices()
    if before is None:
        del os.environ["XLA_FLAGS"]
    else:
        os.environ["XLA_FLAGS"] = before


_start_jax(f"--xla_force_host_platform_device_count=8 {XLA_FLAGS}")


def pytest_addoption(parser):
    parser.addoption(
        "--without-tensorflow",
        action="store_true",
        help="run as if TensorFlow were not installed, without the tests marked tf",
    )


_CACHE = None  # of what all tests compile, made and removed by the first process


def pytest_configure(config):
    global _CACHE
    if not hasattr(config, "workerinput"):
        _CACHE = os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="pclseg_test_")
    if config.getoption("--without-tensorflow"):
        hide_tensorflow()
        config.option.markexpr = f"({config.option.markexpr}) and not tf"


def pytest_unconfigure():
    if _CACHE:
        shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real volumes, beside the repository; skips where absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs real volumes in ../shared/data, which is absent")
    return folder


def forget_compiled_code() -> None:
    """Frees compiled functions once they hold much of what a process may map.

    Linux gives a process 65,530 mappings; each compiled step of a method takes
    thousands, and beyond the limit XLA crashes.
    """
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > 10_000:
        jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def room_for_compiled_code():
    """Every module of tests starts with room."""
    yield
    forget_compiled_code()
