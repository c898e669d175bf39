"""Whole volumes from batches of slices: padding, batches, softmax."""

import numpy as np
import pytest

from pclseg.evaluation import inference
from pclseg.evaluation.inference import mean_of, with_flips


class _Recorder:
    """Pixel-wise logits, and a memory of what was asked."""

    def __init__(self, scale=1.0):
        self.batches, self.scale = [], scale

    def __call__(self, batch):
        self.batches.append(batch.copy())
        return np.concatenate([batch, -batch, batch**2], axis=-1) * self.scale


def _image(depth, height, width):
    return np.random.default_rng(0).normal(size=(depth, height, width)).astype("f4")


def predict_volume(predict, image, **given):
    """Of an image [Z, H, W] of one channel."""
    return inference.predict_volume(predict, image[..., None], **given)


def _naive_softmax(image, scale=1.0):
    value = image.astype(np.float64) * scale
    exp = np.exp(np.stack([value, -value, value * image], axis=-1))
    return exp / exp.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("shape", [(5, 9, 17), (4, 16, 16), (1, 33, 3), (8, 40, 20)])
@pytest.mark.parametrize("min_shape", [(16, 16), (32, 48)])
def test_probs_lie_where_their_pixels_are(shape, min_shape):
    image, predict = _image(*shape), _Recorder()
    probs = predict_volume(predict, image, min_shape=min_shape, batch_size=4)
    assert probs.shape == (*shape, 3) and probs.dtype == np.float32
    np.testing.assert_allclose(probs, _naive_softmax(image), atol=1e-6)


def test_padding_is_that_of_training():
    image, predict = _image(2, 5, 18), _Recorder()
    predict_volume(predict, image, min_shape=(16, 16), batch_size=2)
    # 5 -> 16 leaves floor(11 / 2) = 5 rows above; 18 -> 32 leaves 7 columns before.
    expected = np.zeros((2, 16, 32), np.float32)
    expected[:, 5:10, 7:25] = image
    np.testing.assert_array_equal(predict.batches[0][..., 0], expected)


def test_every_batch_has_the_same_shape_and_the_last_is_filled_with_zeros():
    image, predict = _image(7, 16, 16), _Recorder()
    predict_volume(predict, image, min_shape=(16, 16), batch_size=3)
    assert {batch.shape for batch in predict.batches} == {(3, 16, 16, 1)}
    assert len(predict.batches) == 3
    assert all(batch.dtype == np.float32 for batch in predict.batches)
    assert not predict.batches[-1][1:].any()


def test_result_does_not_depend_on_the_batch_size():
    image = _image(7, 20, 12)
    one, many = (
        predict_volume(_Recorder(), image, min_shape=(16, 16), batch_size=size)
        for size in (1, 10)
    )
    np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize(
    ("size", "least", "expected"), [(17, 16, 32), (352, 352, 352), (20, 352, 352)]
)
def test_padded_size(size, least, expected):
    predict = _Recorder()
    image = _image(1, size, size)
    predict_volume(predict, image, min_shape=(least, least), batch_size=1)
    assert predict.batches[0].shape == (1, expected, expected, 1)


def test_channels_keep_their_order_and_their_pixels():
    image = np.stack([_image(5, 9, 17), _image(5, 9, 17) + 1], axis=-1)
    given = dict(min_shape=(16, 16), batch_size=2)
    difference = inference.predict_volume(
        lambda batch: batch @ np.float32([[1, 0], [0, -1]]), image, **given
    )
    expected = np.exp(image * [1, -1])
    expected /= expected.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(difference, expected, atol=1e-6)


def test_huge_logits_give_finite_probs_that_sum_to_1():
    probs = predict_volume(
        _Recorder(scale=1e30), _image(2, 16, 16), min_shape=(16, 16), batch_size=2
    )
    assert np.isfinite(probs).all()
    np.testing.assert_allclose(probs.sum(axis=-1), 1, atol=1e-6)


def test_wrong_ranks_are_refused():
    with pytest.raises(ValueError, match=r"expected \[Z, H, W, C\]"):
        predict_volume(_Recorder(), np.zeros((4, 4)), min_shape=(16, 16), batch_size=1)
    with pytest.raises(ValueError, match=r"expected \[2, 16, 16, K\]"):
        predict_volume(
            lambda batch: batch[..., 0],
            _image(1, 4, 4),
            min_shape=(16, 16),
            batch_size=2,
        )


@pytest.mark.parametrize("tile", [16, 32, 48])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_tiles_that_agree_give_the_whole_slices(tile, batch_size):
    image = _image(3, 41, 70)
    given = dict(min_shape=(16, 16), batch_size=batch_size)
    whole = predict_volume(_Recorder(), image, **given)
    predict = _Recorder()
    tiled = predict_volume(predict, image, **given, tile=tile)
    np.testing.assert_allclose(tiled, whole, atol=1e-6)
    shape = (batch_size, min(tile, 48), min(tile, 80), 1)
    assert {batch.shape for batch in predict.batches} == {shape}


def test_a_tile_of_the_whole_slice_is_the_plain_prediction():
    image = _image(3, 41, 70)
    given = dict(min_shape=(16, 16), batch_size=2)
    whole = predict_volume(_Recorder(), image, **given)
    tiled = predict_volume(_Recorder(), image, **given, tile=80)
    np.testing.assert_array_equal(tiled, whole)


def test_where_tiles_differ_the_middle_of_a_tile_counts_most():
    def by_place(batch):  # class 1 is likely in the tile that begins with the mark
        marked = batch[:, :1, :1] > 0
        logits = np.where(marked, 4.0, -4.0) * np.ones_like(batch)
        return np.concatenate([-logits, logits], axis=-1)

    image = np.zeros((1, 16, 32), np.float32)
    image[0, 0, 0] = 1.0
    probs = predict_volume(by_place, image, min_shape=(16, 16), batch_size=1, tile=16)[
        0, 8, :, 1
    ]
    assert probs[0] > 0.99 and probs[31] < 0.01
    assert (np.diff(probs) <= 1e-6).all()  # ever less of the first tile


@pytest.mark.parametrize("length", [16, 17, 40, 64, 100])
def test_tiles_cover_all_and_overlap_by_half(length):
    starts = inference._starts(length, 16)
    assert starts[0] == 0 and starts[-1] == length - 16
    assert all(0 < b - a <= 8 for a, b in zip(starts, starts[1:], strict=False))


def test_a_tile_is_a_multiple():
    with pytest.raises(ValueError, match="tile is 24; expected a multiple of 16"):
        predict_volume(
            _Recorder(), _image(1, 8, 8), min_shape=(8, 8), batch_size=1, tile=24
        )


def test_flips_give_the_mean_over_mirror_images():
    def left_of_middle(image):  # knows where it is: the left half is class 1
        probs = np.zeros((*image.shape, 2), np.float32)
        probs[:, :, : image.shape[2] // 2, 1] = 1.0
        probs[..., 0] = 1.0 - probs[..., 1]
        return probs

    probs = with_flips(left_of_middle)(_image(2, 6, 8))
    np.testing.assert_allclose(probs, 0.5)


def test_several_networks_are_their_mean():
    image = _image(2, 3, 4)

    def constant(value):
        return lambda image: np.full((*image.shape, 2), value, np.float32)

    mean = mean_of([constant(0.0), constant(0.3), constant(0.9)])(image)
    np.testing.assert_allclose(mean, 0.4, rtol=1e-6)
    first = constant(0.25)
    assert mean_of([first]) is first
