"""Positions, partitions, the slice table and the pixels in memory."""

import fractions
import types

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from pclseg.data import slices
from pclseg.errors import UserError

# Labels of all slices by their number, as the authors' code gives them.
PARTITIONS = {
    2: "1 2",
    3: "1 2 3",
    4: "1 2 3 4",
    5: "1 2 3 4 4",
    6: "1 1 2 2 3 3",
    7: "1 1 2 2 3 3 4",
    8: "1 1 2 2 3 3 4 4",
    9: "1 1 2 2 3 3 4 4 4",
    10: "1 1 1 2 2 2 3 3 3 4",
    11: "1 1 1 2 2 2 3 3 3 4 4",
    12: "1 1 1 2 2 2 3 3 3 4 4 4",
    14: "1 1 1 1 2 2 2 2 3 3 3 3 4 4",
    18: "1 1 1 1 1 2 2 2 2 2 3 3 3 3 3 4 4 4",
}


class FakeStore:
    """Volumes of the given shapes whose pixels all differ; counts what is read."""

    def __init__(self, shapes, *, unlabelled=(), classes=3):
        self.class_names = tuple(f"class{i}" for i in range(classes))
        self.infos = tuple(
            types.SimpleNamespace(
                name=f"case{row}",
                shape=shape,
                channels=2,
                labelled=row not in unlabelled,
            )
            for row, shape in enumerate(shapes)
        )
        self.read = []

    def volume(self, row):
        self.read.append(row)
        info = self.infos[row]
        pixels = np.arange(np.prod(info.shape)).reshape(info.shape)
        label = (pixels + row) % len(self.class_names) if info.labelled else None
        return types.SimpleNamespace(
            info=info,
            image=(pixels[..., None] + np.float32([0.25, 0.5]) + 10_000 * row).astype(
                np.float32
            ),
            label=None if label is None else label.astype(np.uint16),
        )


def test_position_counts_from_one_and_ends_at_one():
    index = np.arange(10)
    assert slices.position(index, 10).tolist() == [(i + 1) / 10 for i in range(10)]
    assert slices.position(np.int32(0), np.int32(1)) == 1.0
    assert slices.position(index, 10).dtype == np.float64


def value_of(words):
    words = [int(word) for word in words]
    weights = [fractions.Fraction(1, 2**power) for power in (31, 63, 95)]
    return sum(w * weight for w, weight in zip(words, weights, strict=True))


def test_position_bits_are_exact_for_every_slice_of_up_to_64():
    for count in range(1, 65):
        position = slices.position(np.arange(count), count)
        bits = slices.position_bits(position)
        assert bits.dtype == np.uint32 and bits.shape == (count, 3)
        for words, value in zip(bits, position.tolist(), strict=True):
            assert value_of(words) == fractions.Fraction(value)


@hypothesis.given(st.floats(2.0**-43, 1.0))
@hypothesis.example(1.0)
@hypothesis.example(np.nextafter(1.0, 0.0))
@hypothesis.example(2.0**-13)
@hypothesis.example(np.nextafter(2.0**-13, 1.0))
@hypothesis.example(np.nextafter(2.0**-43, 1.0))
@hypothesis.example(1 / (2**31 - 1))
def test_position_bits_are_exact_for_every_double(position):
    words = slices.position_bits(position)
    assert value_of(words) == fractions.Fraction(position)


@pytest.mark.parametrize("count", PARTITIONS)
def test_partition_equals_the_authors_table(count):
    labels = slices.partition(np.arange(count), count)
    assert " ".join(map(str, labels)) == PARTITIONS[count]
    assert labels.dtype == np.int32


def test_partition_of_a_single_slice_is_one():
    assert slices.partition(0, 1) == 1
    assert slices.partition(0, 1, even=True) == 1


def test_even_partitions_differ_by_one_slice_at_most():
    for count in range(4, 100):
        labels = slices.partition(np.arange(count), count, even=True)
        sizes = np.bincount(labels, minlength=5)[1:]
        assert sizes.sum() == count
        assert sizes.max() - sizes.min() <= 1
        assert (np.diff(labels) >= 0).all()


def test_slice_table_lists_the_chosen_volumes_slice_by_slice():
    store = FakeStore([(2, 5, 6), (4, 5, 6), (3, 7, 8)])
    table = slices.slice_table(store.infos, [2, 0])
    assert len(table) == 5
    assert table.volume.tolist() == [2, 2, 2, 0, 0]
    assert table.index.tolist() == [0, 1, 2, 0, 1]
    assert table.count.tolist() == [3, 3, 3, 2, 2]
    assert table.height.tolist() == [7, 7, 7, 5, 5]
    assert table.width.tolist() == [8, 8, 8, 6, 6]
    columns = table.volume, table.index, table.count, table.height, table.width
    assert {column.dtype for column in columns} == {np.dtype(np.int32)}


def test_slice_table_of_no_volume_is_empty():
    assert len(slices.slice_table(FakeStore([(2, 5, 6)]).infos, [])) == 0


def test_load_pixels_reads_each_volume_once_and_finds_every_plane():
    store = FakeStore([(2, 5, 6), (4, 5, 6), (3, 7, 8)])
    pixels = slices.load_pixels(store, [2, 0, 2, 0], label=True)
    assert sorted(store.read) == [0, 2]
    assert (pixels.image.dtype, pixels.label.dtype) == (np.float32, np.uint8)
    for row in (0, 2):
        volume = store.volume(row)
        for index, plane in enumerate(volume.label):
            first = pixels.first_pixel(np.array([row]), np.array([index]))[0]
            place = slice(first, first + plane.size)
            assert (pixels.image[place] == volume.image[index].reshape(-1, 2)).all()
            assert (pixels.label[place] == plane.ravel()).all()


def test_load_pixels_keeps_labels_only_if_asked_and_all_their_values():
    assert slices.load_pixels(FakeStore([(1, 2, 3)]), [0], label=False).label is None
    store = FakeStore([(1, 20, 20)], classes=300)
    pixels = slices.load_pixels(store, [0], label=True)
    assert pixels.label.max() == 299


def test_load_pixels_names_a_volume_without_label():
    store = FakeStore([(1, 2, 3)] * 3, unlabelled=(1,))
    with pytest.raises(UserError, match=r"1 of 2 volumes have no label.*'case1'"):
        slices.load_pixels(store, [0, 1], label=True)
    assert store.read == []
    assert slices.load_pixels(store, [0, 1], label=False).label is None
    assert slices.load_pixels(store, [0, 2], label=True).label is not None


def test_attributes_are_those_asked_for():
    rows = types.SimpleNamespace(
        volume=np.zeros(10, np.int32),
        index=np.arange(10, dtype=np.int32),
        count=np.full(10, 10, np.int32),
        partition=slices.partition(np.arange(10), 10),
    )
    values = slices.attributes(rows, {"position_bits", "partition", "index", "image"})
    assert sorted(values) == ["index", "partition", "position_bits"]
    assert values["partition"].tolist() == slices.partition(rows.index, 10).tolist()
    position = slices.position(rows.index, 10)
    assert (values["position_bits"] == slices.position_bits(position)).all()
