"""A whole run where TensorFlow is not installed."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT, main_env, tiny_args

WITHOUT = """
import sys
from hide_tensorflow import hide_tensorflow
hide_tensorflow()
from pclseg.main import main
code = main(sys.argv)
assert "tensorflow" not in sys.modules
sys.exit(code)
"""


@pytest.mark.slow
def test_prepare_pretrain_finetune_and_evaluate(tmp_path):
    args = tiny_args(
        tmp_path / "phantom",
        tmp_path / "prepared",
        tmp_path / "run",
        data__options__volumes=6,
        pretrain__train__steps=4,
        pretrain__augment={"name": "none"},  # the other one is slow to compile
        finetune__train__steps=4,
        finetune__augment={"name": "none"},
    )
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT, *args],
        env=main_env(PYTHONPATH=f"{ROOT}:{Path(__file__).parent}"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run"
    for stage in ("pretrain", "finetune"):
        assert json.loads((run / stage / "done.json").read_text())["steps"] == 4
    summary = json.loads((run / "summary.json").read_text())
    assert summary["scored"] == "validation"
    with (run / "cases.csv").open() as file:
        cases = {row["case"] for row in csv.DictReader(file)}
    written = {path.name for path in (run / "predictions").iterdir()}
    assert cases and written == {f"{case}.nii.gz" for case in cases}
