"""The store: what is written comes back, in any order, without TensorFlow."""

import concurrent.futures
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from pclseg.data import tfds_store
from pclseg.data.geometry import prepared_geometry
from pclseg.data.tfds_store import CaseInfo, Volume
from pclseg.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def make_volume(row, dtype=np.uint8, labelled=True):
    shape = (3 + row % 2, 5, 4)  # (Z, H, W)
    geometry, _, spacing = prepared_geometry(
        shape[::-1], np.diag([1.1, 1.2, 5.3, 1.0]), slice_axis="auto", spacing=()
    )
    rng = np.random.default_rng(row)
    info = CaseInfo(
        name=f"case_{row}",
        patient=f"patient_{row // 2}",
        frame=("ED", "ES")[row % 2],
        shape=shape,
        channels=2,
        spacing=spacing,
        labelled=labelled,
        spacing_known=row != 1,
        in_series=row == 2,
        geometry=geometry,
        image_path=f"/raw/case_{row}.nii.gz",
    )
    image = rng.normal(size=(*shape, 2)).astype(np.float32)
    label = rng.integers(0, 3, shape).astype(dtype) if labelled else None
    return Volume(info, image, label)


def write(path, volumes, label_values=(0, 2, 5)):
    return tfds_store.write_store(
        path,
        volumes=volumes,
        infos=[volume.info for volume in volumes],
        class_names=[f"class {value}" for value in label_values],
        label_values=label_values,
        fingerprint="0123abcd",
    )


@pytest.fixture(scope="module")
def volumes():
    return [make_volume(row, labelled=row != 3) for row in range(12)]


@pytest.fixture(scope="module")
def path(volumes, tmp_path_factory):
    return write(tmp_path_factory.mktemp("stores") / "store", volumes)


def assert_same(ours, theirs):
    assert ours.info == theirs.info
    assert ours.image.dtype == np.float32
    np.testing.assert_array_equal(ours.image, theirs.image)
    if theirs.label is None:
        assert ours.label is None
    else:
        assert ours.label.dtype == theirs.label.dtype
        np.testing.assert_array_equal(ours.label, theirs.label)


def test_volumes_come_back_in_any_order(path, volumes):
    store = tfds_store.open_store(path)
    assert store.infos == tuple(volume.info for volume in volumes)
    assert store.class_names == ("class 0", "class 2", "class 5")
    assert store.label_values == (0, 2, 5)
    assert store.fingerprint == "0123abcd"
    for row in (7, 0, 3, 11, -1, 7):
        assert_same(store.volume(row), volumes[row])
    with pytest.raises(IndexError):
        store.volume(12)


def test_threads_read_the_same(path, volumes):
    store = tfds_store.open_store(path)
    rows = np.random.default_rng(0).integers(0, 12, 60)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for row, volume in zip(rows, pool.map(store.volume, rows), strict=True):
            assert_same(volume, volumes[row])


def test_the_store_is_a_tfds_dataset_of_its_own_accord(path, volumes):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(path)
    assert builder.info.splits["volumes"].num_examples == 12
    example = builder.as_data_source(split="volumes")[5]
    assert CaseInfo.from_json(example["info"].decode()) == volumes[5].info
    files = {file.name for file in path.iterdir()}
    assert "dataset_info.json" in files
    assert any(".array_record-" in name for name in files)


def test_a_store_may_be_moved(path, volumes, tmp_path):
    shutil.copytree(path, tmp_path / "moved")
    assert_same(tfds_store.open_store(tmp_path / "moved").volume(4), volumes[4])


def test_more_than_256_classes_need_uint16(tmp_path):
    volume = make_volume(0, np.uint16)
    volume.label[0, 0, 0] = 299
    path = write(tmp_path / "many", [volume], tuple(range(300)))
    assert_same(tfds_store.open_store(path).volume(0), volume)


def test_a_write_that_fails_leaves_no_store_and_may_be_repeated(tmp_path, volumes):
    def failing():
        yield volumes[0]
        raise OSError("disk full")

    arguments = dict(
        infos=[volume.info for volume in volumes[:2]],
        class_names=("a", "b"),
        label_values=(0, 1),
        fingerprint="f",
    )
    with pytest.raises(OSError, match="disk full"):
        tfds_store.write_store(tmp_path / "store", volumes=failing(), **arguments)
    with pytest.raises(UserError, match="there is no folder"):
        tfds_store.open_store(tmp_path / "store")
    path = tfds_store.write_store(tmp_path / "store", volumes=volumes[:2], **arguments)
    assert_same(tfds_store.open_store(path).volume(1), volumes[1])
    assert [file.name for file in tmp_path.iterdir()] == ["store"]


def test_another_format_is_refused(path, tmp_path):
    text = (path / "metadata.json").read_text()
    (tmp_path / "metadata.json").write_text(text.replace('"format": 2', '"format": 1'))
    with pytest.raises(UserError, match="has store format 1, this version reads 2"):
        tfds_store.open_store(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 2, "infos": [3]}'])
def test_damaged_metadata_is_told_with_what_to_do(tmp_path, content):
    (tmp_path / "metadata.json").write_text(content)
    with pytest.raises(
        UserError, match=r"metadata\.json is missing or damaged; remove"
    ):
        tfds_store.open_store(tmp_path)
    (tmp_path / "metadata.json").unlink()
    with pytest.raises(
        UserError, match=r"metadata\.json is missing or damaged; remove"
    ):
        tfds_store.open_store(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "zeros", "features", "gone"])
def test_damaged_voxels_are_told_with_what_to_do(path, tmp_path, damage):
    copy = shutil.copytree(path, tmp_path / "store")
    (records,) = copy.glob("*.array_record*")
    data = records.read_bytes()
    if damage == "cut":
        records.write_bytes(data[:3000])
    elif damage == "zeros":
        records.write_bytes(bytes(len(data)))
    elif damage == "features":
        (copy / "features.json").unlink()
    else:
        records.unlink()
    store = tfds_store.open_store(copy)
    with pytest.raises(UserError, match="store: volume 0 cannot be read; remove this"):
        store.volume(0)


def test_a_volume_over_the_limit_of_an_example_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_store, "MAX_BYTES", 100)
    with pytest.raises(
        UserError, match=r"case_0: .* has \(3, 5, 4\) voxels .*\.spacing"
    ):
        write(tmp_path / "store", [make_volume(0)])


def test_without_tensorflow_all_works_quietly_and_home_stays_empty(tmp_path):
    """In a process of its own, where TensorFlow cannot be found."""
    code = """
        import sys
        from hide_tensorflow import hide_tensorflow
        hide_tensorflow()
        import pclseg.data.prepare, pclseg.data.tfds_store as tfds_store
        assert not {"tensorflow_datasets", "jax"} & set(sys.modules)
        from test_tfds_store import assert_same, make_volume, write
        volume = make_volume(0)
        path = write(sys.argv[1], [volume])
        store = tfds_store.open_store(path)
        assert_same(store.volume(0), volume)
        assert "tensorflow" not in sys.modules
    """
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "store")],
        env={
            **os.environ,
            "HOME": str(home),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""
    assert list(home.rglob("*")) == []
