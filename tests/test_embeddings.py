"""Diagnostics of an embedding against loops over pairs and known geometry."""

import itertools
import math

import numpy as np
import pytest

from pclseg.evaluation import embeddings


def _data(seed=0, patients=5, dim=6):
    rng = np.random.default_rng(seed)
    counts = rng.integers(3, 9, patients)
    position = np.concatenate([(np.arange(n) + 1) / n for n in counts])
    patient = np.repeat([f"p{i}" for i in range(patients)], counts)
    return rng.normal(size=(len(position), dim)), position, patient


def _pairs(embedding, position, patient):
    unit = [row / math.sqrt(sum(row**2)) for row in embedding]
    for i, j in itertools.combinations(range(len(unit)), 2):
        if patient[i] != patient[j]:
            yield unit[i], unit[j], abs(position[i] - position[j])


@pytest.fixture(params=[3, 1024], ids=["blocks", "one block"])
def block(request, monkeypatch):
    monkeypatch.setattr(embeddings, "BLOCK", request.param)


@pytest.mark.usefixtures("block")
def test_similarity_curve_equals_a_loop_over_pairs():
    data = _data()
    distance, mean, n = embeddings.similarity_curve(*data, bins=7)
    np.testing.assert_allclose(distance, (np.arange(7) + 0.5) / 7)
    inside = [[] for _ in range(7)]
    for u, v, apart in _pairs(*data):
        inside[math.floor(round(apart, 9) * 7 + 1e-8)].append(sum(u * v))
    assert n.tolist() == [len(values) for values in inside]
    expected = [np.mean(values) if values else np.nan for values in inside]
    np.testing.assert_allclose(mean, expected, rtol=1e-12)


def test_equal_distances_fall_into_one_bin():
    # |0.3 - 0.1| and |0.9 - 0.7| differ in the last bit; both are 0.2, bin 2 of 10.
    position = np.array([0.1, 0.3, 0.7, 0.9])
    z = np.eye(4)
    _, _, n = embeddings.similarity_curve(z, position, np.arange(4), bins=10)
    assert n[2] == 2


def test_slices_of_one_patient_are_no_pair():
    z, position, _ = _data()
    _, mean, n = embeddings.similarity_curve(z, position, np.zeros(len(z)), bins=4)
    assert not n.any() and np.isnan(mean).all()
    same = np.zeros(len(z))
    assert math.isnan(embeddings.alignment(z, position, same, threshold=0.5))


@pytest.mark.usefixtures("block")
def test_alignment_and_uniformity_equal_loops_over_pairs():
    data = _data(1)
    near = [sum((u - v) ** 2) for u, v, apart in _pairs(*data) if apart < 0.26]
    found = embeddings.alignment(*data, threshold=0.26)
    assert found == pytest.approx(np.mean(near), rel=1e-12)
    everything = _pairs(data[0], data[1], range(len(data[1])))
    potential = [math.exp(-2 * sum((u - v) ** 2)) for u, v, _ in everything]
    found = embeddings.uniformity(data[0])
    assert found == pytest.approx(math.log(np.mean(potential)), rel=1e-12)


def test_collapse_is_seen():
    z, position, patient = np.ones((9, 4)), np.arange(1, 10) / 9, np.arange(9) % 3
    assert embeddings.embedding_std(z) == pytest.approx(0, abs=1e-12)
    assert embeddings.uniformity(z) == pytest.approx(0, abs=1e-12)
    assert embeddings.alignment(z, position, patient, threshold=1) == pytest.approx(0)


def test_std_of_a_spread_over_the_sphere_is_one_over_root_d():
    z = np.random.default_rng(0).normal(size=(20_000, 16))
    assert embeddings.embedding_std(z) == pytest.approx(16**-0.5, rel=0.01)


def test_length_of_the_embedding_does_not_matter():
    z, position, patient = _data(2)
    scaled = z * np.linspace(0.1, 9, len(z))[:, None]
    for a, b in zip(
        embeddings.similarity_curve(z, position, patient, bins=5),
        embeddings.similarity_curve(scaled, position, patient, bins=5),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert embeddings.uniformity(z) == pytest.approx(embeddings.uniformity(scaled))


def test_a_row_of_zeros_stays_zeros():
    np.testing.assert_array_equal(embeddings.unit_length(np.zeros((1, 3))), 0)


@pytest.mark.parametrize("folds", [2, 5, 99])
def test_position_r2_equals_least_squares_with_penalty_rows(folds):
    z, position, patient = _data(3)
    names = sorted(set(patient))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    guess = np.zeros(len(z))
    for fold in range(min(folds, len(names))):
        held = [name for i, name in enumerate(names) if i % folds == fold]
        test = np.isin(patient, held)
        # Columns: weights, then the intercept, which is not penalised.
        rows = np.hstack([unit[~test], np.ones((sum(~test), 1))])
        penalty = np.hstack([np.eye(6) * math.sqrt(0.3), np.zeros((6, 1))])
        target = np.concatenate([position[~test], np.zeros(6)])
        weight = np.linalg.lstsq(np.vstack([rows, penalty]), target, rcond=None)[0]
        guess[test] = np.hstack([unit[test], np.ones((sum(test), 1))]) @ weight
    deviation = ((position - position.mean()) ** 2).sum()
    expected = 1 - ((position - guess) ** 2).sum() / deviation
    found = embeddings.position_r2(z, position, patient, penalty=0.3, folds=folds)
    assert found == pytest.approx(expected, rel=1e-9)


def test_position_r2_is_1_for_an_embedding_of_position_and_below_0_for_identity():
    _, position, patient = _data(4, patients=8)
    known = np.stack([np.cos(position), np.sin(position)], axis=1)
    options = {"penalty": 1e-6, "folds": 4}
    assert embeddings.position_r2(known, position, patient, **options) > 0.99
    identity = np.eye(8)[np.unique(patient, return_inverse=True)[1]]
    assert embeddings.position_r2(identity, position, patient, **options) < 0


def test_position_r2_is_nan_where_it_has_no_meaning():
    z, position, patient = _data()
    options = {"penalty": 1.0, "folds": 3}
    one = np.zeros(len(z))
    assert math.isnan(embeddings.position_r2(z, position, one, **options))
    flat = np.full(len(z), 0.5)
    assert math.isnan(embeddings.position_r2(z, flat, patient, **options))


@pytest.mark.usefixtures("block")
def test_neighbour_error_and_its_chance_equal_loops_over_slices():
    z, position, patient = _data(6)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    errors, chances = [], []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if patient[j] != patient[i]]
        nearest = max(others, key=lambda j: float(unit[i] @ unit[j]))
        errors.append(abs(position[i] - position[nearest]))
        chances.append(np.mean([abs(position[i] - position[j]) for j in others]))
    found = embeddings.neighbour_position_error(z, position, patient)
    assert found == pytest.approx((np.mean(errors), np.mean(chances)), rel=1e-12)


def test_neighbour_error_is_0_where_position_is_embedded_and_chance_where_not():
    position = np.tile(np.arange(1, 11) / 10, 30)
    patient = np.repeat(np.arange(30), 10)
    known = np.stack([np.cos(position), np.sin(position)], axis=1)
    error, chance = embeddings.neighbour_position_error(known, position, patient)
    assert error == pytest.approx(0, abs=1e-12)
    assert chance == pytest.approx(0.33)  # sum of |i - j| / 10 over 10 x 10, / 100
    noise = np.random.default_rng(0).normal(size=(300, 8))
    error, again = embeddings.neighbour_position_error(noise, position, patient)
    assert again == chance and error == pytest.approx(chance, abs=0.05)


def test_neighbour_error_is_nan_without_another_patient():
    z, position, _ = _data()
    found = embeddings.neighbour_position_error(z, position, np.zeros(len(z)))
    assert all(map(math.isnan, found))


def test_principal_components_are_eigenvectors_of_the_covariance():
    z, _, _ = _data(5)
    points, share = embeddings.principal_components(z, 2)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(np.cov(unit.T))
    np.testing.assert_allclose(share, values[::-1][:2] / values.sum(), rtol=1e-9)
    expected = (unit - unit.mean(axis=0)) @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-9)


def test_principal_components_of_a_collapsed_embedding_are_0():
    points, share = embeddings.principal_components(np.ones((4, 3)), 2)
    np.testing.assert_allclose(points, 0, atol=1e-12)
    assert np.isfinite(share).all()
