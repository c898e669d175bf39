"""The file of diagnostics: what it holds, and that it is read back."""

import functools
import json
import math

import numpy as np
import pytest

from pclseg import diagnostics
from pclseg.errors import UserError
from pclseg.evaluation import embeddings
from pclseg.files import write_json
from pclseg.reports import artifacts


def embedded(patients=3, slices=8):
    rng = np.random.default_rng(0)
    count = patients * slices
    return diagnostics.Embedded(
        embedding={name: rng.normal(size=(count, 6)) for name in ("before", "after")},
        position=np.tile((np.arange(slices) + 1) / slices, patients),
        patient=np.repeat([f"p{n}" for n in range(patients)], slices),
    )


def test_the_file_holds_what_the_embeddings_give(tmp_path):
    found = embedded()
    write_json(tmp_path / "diagnostics.json", diagnostics.summary(found))
    read = artifacts.read_diagnostics(tmp_path / "diagnostics.json")
    about = (found.position, found.patient)
    assert list(read.measures) == list(read.maps) == ["before", "after"]
    for name, z in found.embedding.items():
        curve = embeddings.similarity_curve(z, *about, bins=10)
        for ours, theirs in zip(read.similarity[name], curve, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        points, share = embeddings.principal_components(z, 2)
        np.testing.assert_allclose(read.maps[name][0], points, atol=1e-6)
        np.testing.assert_array_equal(read.maps[name][1], share)
        error, chance = embeddings.neighbour_position_error(z, *about)
        assert read.measures[name] == {
            "std": embeddings.embedding_std(z),
            "alignment": embeddings.alignment(z, *about, threshold=0.1),
            "uniformity": embeddings.uniformity(z),
            "position_r2": embeddings.position_r2(z, *about, penalty=1.0, folds=5),
            "neighbour_error": error,
            "neighbour_error_chance": chance,
        }
    np.testing.assert_array_equal(read.position, found.position)
    assert read.patient.tolist() == found.patient.tolist()


def test_what_does_not_exist_is_null_in_json():
    found = diagnostics.summary(embedded(patients=1))
    text = json.dumps(found, allow_nan=False)  # raises for NaN
    measures = json.loads(text)["measures"]["after"]
    missing = {key for key, value in measures.items() if value is None}
    assert missing == {
        *("alignment", "position_r2", "neighbour_error", "neighbour_error_chance")
    }
    assert found["similarity"]["after"]["mean"] == [None] * 10


def test_null_is_read_as_nan(tmp_path):
    path = tmp_path / "diagnostics.json"
    write_json(path, diagnostics.summary(embedded(patients=1)))
    _, mean, pairs = artifacts.read_diagnostics(path).similarity["before"]
    assert all(map(math.isnan, mean)) and not pairs.any()


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "diagnostics.json"
    write_json(path, {"similarity": {}})
    with pytest.raises(UserError, match=r"diagnostics\.json is not as .* delete it"):
        artifacts.read_diagnostics(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("measures.after", {}),
        ("measures.before.std", "much"),
        ("similarity.after.mean", None),
        ("similarity.before.pairs", [1, 2]),
        ("map.position", 3),
        ("map.patient", ["a"]),
        ("map.after", [[0.0, 0.0, 0.0]]),
        ("map.share.before", [1.0]),
    ],
)
def test_a_value_that_cannot_be_drawn_is_told(tmp_path, key, value):
    path = tmp_path / "diagnostics.json"
    found = diagnostics.summary(embedded())
    *sections, last = key.split(".")
    functools.reduce(dict.__getitem__, sections, found)[last] = value
    write_json(path, found)
    with pytest.raises(UserError, match=r"diagnostics\.json is not as .* delete it"):
        artifacts.read_diagnostics(path)
