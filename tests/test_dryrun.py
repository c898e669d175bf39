"""What a dry run prints of positives, against a naive count."""

import re

import jax
import numpy as np
import pytest
from tiny_nifti import ROOT, acdc_tree

from pclseg import building, dryrun
from pclseg.config import load_config, override
from pclseg.data.slices import position


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    root = tmp_path_factory.mktemp("acdc")
    acdc_tree(root)
    config = load_config(f"{ROOT}/configs/pcl_acdc.py:size=cpu")
    override(config, ["--config.data.pipeline=numpy", f"--config.data.raw_dir={root}"])
    outline = building.outline(config)
    return outline, dryrun.describe(config, outline, jax.local_devices()[:1])


def test_positives_are_those_of_the_first_batches(described):
    outline, text = described
    plan = outline.stages["pretrain"].plan
    counts = []
    for step in range(dryrun.STEPS):
        rows = plan.rows(step)
        height = np.tile(position(rows.index, rows.count), 2)  # both views
        near = np.abs(height[:, None] - height[None, :]) < 0.35
        counts.append(near.sum(axis=1) - 1)
    counts = np.concatenate(counts)
    said = re.search(r"mean ([\d.]+), least (\d+), most (\d+) of (\d+) keys", text)
    assert float(said[1]) == pytest.approx(counts.mean(), abs=0.051)
    assert [int(word) for word in said.groups()[1:]] == [
        counts.min(),
        counts.max(),
        2 * plan.batch_size - 1,
    ]


def test_state_is_parameters_twice_or_thrice_and_statistics(described):
    outline, text = described
    for name, copies in (("pretrain", 2), ("finetune", 3)):  # SGD's trace; Adam's two
        lines = text[text.index(f"{name}: method") :]
        said = re.search(r"parameters ([\d,]+); state ([\d.]+) MiB", lines)
        numbers = int(said[1].replace(",", ""))
        assert float(said[2]) == pytest.approx(copies * 4 * numbers / 2**20, rel=0.02)
