"""Images of several channels: the same from every layout, and all the way through."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel import orientations
from tiny_nifti import (
    InlinePool,
    call_main,
    clean_process,
    config_for,
    image,
    label,
    nifti_tree,
    options_of,
    write,
)

import pclseg
from pclseg import augment
from pclseg.__main__ import main
from pclseg.augment import sample_keys
from pclseg.data import examine, workers
from pclseg.data.datasets import msd, nifti
from pclseg.data.headers import header_infos
from pclseg.data.lines import load_lines
from pclseg.data.plan import Plan
from pclseg.data.prepare import fingerprint, prepare_case
from pclseg.data.slices import slice_table
from pclseg.errors import UserError
from pclseg.predicting import cases_of, predict_files
from pclseg.trained import Segmenter

SHAPE = (20, 18, 5)
OPTIONS = dataclasses.replace(options_of("pcl_nifti"), slice_axis=2, spacing=())
CODES = ("RAS", "LPS", "SAR", "PIL", "ASL")


def by_last_channel(prepared):
    """Probabilities of two classes: the mean of the last channel divides them."""
    bright = (prepared[..., -1] > 0).astype(np.float32)
    return np.stack([1 - bright, bright], axis=-1)


SEGMENTER = Segmenter(
    predictor=by_last_channel,
    options=OPTIONS,
    class_names=("background", "bright"),
    label_values=(0, 255),
    channels=(0, 1),
)


def stored(array, affine, code):
    """The same voxels with their axes in another order and direction."""
    turn = orientations.ornt_transform(
        orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(code)
    )
    turned = orientations.apply_orientation(array, turn)
    return turned, affine @ orientations.inv_ornt_aff(turn, array.shape)


@given(
    code=st.sampled_from(CODES),
    degrees=st.floats(-40, 40),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    shape=st.tuples(*[st.integers(2, 7)] * 3),
    channels=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_predictions_of_any_grid_have_its_voxels_and_header(
    tmp_path_factory, code, degrees, spacing, shape, channels, seed
):
    folder = tmp_path_factory.mktemp("grid")
    truth = np.resize([0, 255, 255, 0, 0], shape)
    noise = np.random.default_rng(seed).normal(size=shape)
    angle = np.deg2rad(degrees)
    affine = np.diag([*spacing, 1.0])
    affine[:2, :2] = [
        [np.cos(angle) * spacing[0], -np.sin(angle) * spacing[1]],
        [np.sin(angle) * spacing[0], np.cos(angle) * spacing[1]],
    ]
    affine[:3, 3] = (-30, 12, 55)
    images = [noise, truth.astype(float)][-channels:]
    for number, voxels in enumerate(images):
        array, own = stored(voxels, affine, code)
        file = nib.Nifti1Image(array.astype(np.float32), own)
        file.set_qform(own, 2)
        nib.save(file, folder / f"x_{number:04d}.nii.gz")
    expected, _ = stored(truth, affine, code)
    numbers = tuple(range(channels)) if channels > 1 else ()
    (target,) = predict_files(
        dataclasses.replace(SEGMENTER, channels=numbers),
        sorted(folder.glob("x_*.nii.gz")),
        folder / "out",
    )
    found, first = nib.load(target), nib.load(folder / "x_0000.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), expected)
    assert found.shape == first.shape
    for key in ("pixdim", "qform_code", "sform_code", "quatern_b", "srow_x", "srow_z"):
        np.testing.assert_array_equal(found.header[key], first.header[key])


def layouts(root):
    """{layout: its dataset} of the same three volumes of two channels."""
    for number in range(3):
        first, second = (image(SHAPE, seed=10 * number + c) for c in range(2))
        name = f"c{number}"
        both = np.stack([second, first, second], axis=-1)
        write(root / f"nnunet/imagesTr/{name}_0000.nii.gz", first)
        write(root / f"nnunet/imagesTr/{name}_0001.nii.gz", second)
        write(root / f"four/imagesTr/{name}.nii.gz", both)
        write(root / f"folders/{name}/t1.nii.gz", first)
        write(root / f"folders/{name}/flair.nii.gz", second)
        bids = root / f"bids/sub-{name}/anat/sub-{name}"
        write(bids.with_name(f"{bids.name}_T1w.nii.gz"), first)
        write(bids.with_name(f"{bids.name}_FLAIR.nii.gz"), second)
        for place in (
            f"nnunet/labelsTr/{name}",
            f"four/labelsTr/{name}",
            f"folders/{name}/seg",
            f"bids/derivatives/sub-{name}/sub-{name}_dseg",
        ):
            write(root / f"{place}.nii.gz", label(SHAPE))

    def globs(folder, images, labels, **options):
        return nifti.make(
            raw_dir=root / folder, images=images, labels=labels, **options
        )

    return {
        "nnU-Net": msd.make(raw_dir=root / "nnunet", channels=(0, 1)),
        "Decathlon": msd.make(raw_dir=root / "four", channels=(1, 2)),
        "nnU-Net by globs": globs(
            "nnunet",
            "imagesTr/*_0000.nii.gz",
            "labelsTr",
            more_images=["imagesTr/*_0001.nii.gz"],
        ),
        "4-D by globs": globs("four", "imagesTr", "labelsTr", channels=(1, 2)),
        "a folder a case": globs(
            "folders", "*/t1.nii.gz", "*/seg.nii.gz", more_images=["*/flair.nii.gz"]
        ),
        "BIDS": globs(
            "bids",
            "sub-*/anat/*_T1w.nii.gz",
            "derivatives/**/*_dseg.nii.gz",
            more_images=["sub-*/anat/*_FLAIR.nii.gz"],
        ),
    }


def test_every_layout_gives_the_same_arrays(tmp_path):
    found = layouts(tmp_path)
    expected = None
    for layout, dataset in found.items():
        volumes = [
            prepare_case(case, OPTIONS, dataset.label_values) for case in dataset.cases
        ]
        arrays = [(volume.image, volume.label) for volume in volumes]
        expected = expected or arrays
        assert [
            info.channels for info in header_infos(dataset, slice_axis=2, spacing=())
        ] == [2, 2, 2], layout
        for (own_image, own_label), (an_image, a_label) in zip(
            arrays, expected, strict=True
        ):
            assert own_image.shape == (5, 18, 20, 2), layout
            np.testing.assert_array_equal(own_image, an_image, err_msg=layout)
            np.testing.assert_array_equal(own_label, a_label, err_msg=layout)
    marks = {fingerprint(dataset, OPTIONS) for dataset in found.values()}
    assert len(marks) == len(found)


def test_channels_are_normalised_by_themselves(tmp_path):
    first, second = image(SHAPE), 7 * image(SHAPE, seed=1) + 3
    write(tmp_path / "images/a_0000.nii.gz", first)
    write(tmp_path / "images/a_0001.nii.gz", second.astype(np.int32))
    dataset = nifti.make(
        raw_dir=tmp_path, images="images/*_0000.nii.gz", more_images=["images/*_0001*"]
    )
    both = prepare_case(dataset.cases[0], OPTIONS, (0,)).image
    for number in range(2):
        name = f"images/a_{number:04d}.nii.gz"
        alone = nifti.make(raw_dir=tmp_path, images=name).cases[0]
        expected = prepare_case(alone, OPTIONS, (0,)).image[..., 0]
        np.testing.assert_array_equal(both[..., number], expected)


def two_channels(root):
    for number in range(2):
        write(root / f"images/x{number}_0000.nii.gz", image(SHAPE, seed=number))
        write(root / f"images/x{number}_0001.nii.gz", image(SHAPE, seed=number + 5))


def make(root, **options):
    given = {"images": "images/*_0000*", "more_images": ["images/*_0001*"]}
    return nifti.make(raw_dir=root, **(given | options))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda f: f.unlink(), r"x0_0000\.nii\.gz lacks a channel \(1 such"),
        (
            lambda f: f.rename(f.with_name("y_0001.nii.gz")),
            r"channel .*y_0001\.nii\.gz matches no image",
        ),
    ],
)
def test_an_image_without_its_channel_is_named(tmp_path, fault, message):
    two_channels(tmp_path)
    fault(tmp_path / "images/x0_0001.nii.gz")
    with pytest.raises(UserError, match=message):
        make(tmp_path)


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (image((20, 18, 4)), r"channel's shape is \(20, 18, 4\), the image's"),
        (np.full(SHAPE, 3, np.int16), "every voxel is 3"),
        (np.full(SHAPE, np.nan, np.float32), "NaN or infinite"),
    ],
)
def test_a_channel_that_cannot_be_used_is_named(tmp_path, voxels, message):
    two_channels(tmp_path)
    path = tmp_path / "images/x1_0001.nii.gz"
    write(path, voxels)
    case = make(tmp_path).cases[1]
    message = rf"x1: .*x1_0001\.nii\.gz: .*{message}"
    with pytest.raises(UserError, match=message):
        prepare_case(case, OPTIONS, (0,))
    request = examine.Request(case=case, slice_axis=2, label_values=(0,), strays=())
    (finding,) = examine.examine(request).findings
    assert finding.path == str(path)


def test_channels_are_files_or_lie_on_the_fourth_axis_not_both(tmp_path):
    two_channels(tmp_path)
    with pytest.raises(UserError, match="more_images, not both"):
        make(tmp_path, channels=(0, 1))
    with pytest.raises(UserError, match=r"\.more_images finds too"):
        make(tmp_path, images="images/*_0001*")


def test_files_to_predict_are_put_together(tmp_path):
    two_channels(tmp_path)
    four = tmp_path / "four.nii.gz"
    write(four, image((*SHAPE, 3)))
    paths = sorted((tmp_path / "images").iterdir())
    cases = cases_of([*paths, four], channels=(0, 1))
    assert [case.name for case in cases] == ["four", "x0", "x1"]
    assert cases[0].channels == ((four, 0), (four, 1))
    assert cases[2].channels == ((paths[2], None), (paths[3], None))
    firsts, seconds = paths[::2], paths[1::2]
    (one, _) = cases_of(firsts, channels=(0, 1), more_paths=[seconds])
    assert one.channels == ((paths[0], None), (paths[1], None))


@pytest.mark.parametrize(
    ("names", "more", "message"),
    [
        (["x0_0000"], [], r"trained on 2 channel\(s\), 0, 1, but the files x0_\* have"),
        (
            ["single"],
            [],
            r"single\.nii\.gz is one channel, but the run was trained on 2",
        ),
        (["single_4d"], [], "has 1 channel|is one channel"),
        (["x0_0000"], [["x0_0001"], ["x1_0001"]], r"names 2 further channel\(s\)"),
        (["x0_0000", "x1_0000"], [["x1_0001"]], "x0_0000.*lacks a channel.*as nnU-Net"),
    ],
)
def test_files_that_lack_a_channel_are_named(tmp_path, names, more, message):
    two_channels(tmp_path)
    for name in ("single", "single_4d"):
        write(tmp_path / f"images/{name}.nii.gz", image((*SHAPE, 1)))
    folder = tmp_path / "images"
    paths = [folder / f"{name}.nii.gz" for name in names]
    further = [[folder / f"{name}.nii.gz" for name in some] for some in more]
    with pytest.raises(UserError, match=message):
        cases_of(paths, channels=(0, 1), more_paths=further)


def test_channels_are_called_by_their_numbers_or_by_their_patterns(tmp_path):
    for number in (1, 3):
        write(tmp_path / f"images/x_{number:04d}.nii.gz", image(SHAPE, seed=number))
        write(tmp_path / f"other/{number}/y.nii.gz", image(SHAPE, seed=number))
    numbered = make(
        tmp_path, images="images/*_0003*", more_images=["images/*_0001.nii.gz"]
    )
    assert numbered.channels == (3, 1)
    named = make(tmp_path, images="other/1", more_images=[f"{tmp_path}/other/3/*"])
    assert named.channels == ("other/1", "3/*")
    paths = sorted((tmp_path / "images").iterdir())
    write(tmp_path / "images/x_0000.nii.gz", image(SHAPE))
    (case,) = cases_of([*paths, tmp_path / "images/x_0000.nii.gz"], channels=(3, 1))
    assert [path.name for path, _ in case.channels] == [
        "x_0003.nii.gz",
        "x_0001.nii.gz",
    ]
    with pytest.raises(UserError, match=r"2 channel\(s\), 0, 1, but .* numbers 1, 3;"):
        cases_of(paths, channels=(0, 1))
    # Of patterns nothing says which number they had: as many as there are, in order.
    (case,) = cases_of(paths, channels=("t1", "t2"))
    assert [path for path, _ in case.channels] == paths
    four = tmp_path / "four.nii.gz"
    write(four, image((*SHAPE, 4)))
    with pytest.raises(UserError, match="4 channels, but .* trained on channel t1, t2"):
        cases_of([four], channels=("t1", "t2"))


def test_of_numbered_files_a_network_of_one_channel_gets_its_own(tmp_path):
    two_channels(tmp_path)
    paths = sorted((tmp_path / "images").iterdir())
    cases = cases_of(paths, channels=(1,))
    assert [case.image_path for case in cases] == paths[1::2]
    assert [case.name for case in cases_of(paths[:1], channels=(1,))] == ["x0"]


@pytest.mark.parametrize(
    "options",
    [
        {"labels": "images/*_0001*"},
        {"more_images": ["images/*_0001*", "images/x*_0001.nii.gz"]},
    ],
)
def test_a_file_is_not_a_channel_and_something_else(tmp_path, options):
    two_channels(tmp_path)
    with pytest.raises(UserError, match=r"x\d_0001\.nii\.gz is found twice"):
        make(tmp_path, **options)


def test_a_4d_label_of_channels_is_refused(tmp_path):
    for folder in ("images", "imagesTr"):
        write(tmp_path / folder / "a.nii.gz", image((*SHAPE, 2)))
        labels = folder.replace("images", "labels")
        write(tmp_path / labels / "a.nii.gz", label((*SHAPE, 2)))
    with pytest.raises(UserError, match=r"a\.nii\.gz is 4-D, but .* a 3-D label"):
        nifti.make(raw_dir=tmp_path, images="images", labels="labels", channels=(0, 1))
    with pytest.raises(UserError, match=r"a\.nii\.gz is 4-D, but .* a 3-D label"):
        msd.make(raw_dir=tmp_path, channels=(0, 1))


def test_a_folder_a_case_is_predicted_under_the_names_of_the_folders(tmp_path):
    for case in ("p0", "p1"):
        for number, name in enumerate(("t1", "t2")):
            write(tmp_path / f"{case}/{name}.nii.gz", image(SHAPE, seed=number))
    found = [sorted(tmp_path.glob(f"*/{name}.nii.gz")) for name in ("t1", "t2")]
    cases = cases_of(found[0], channels=("t1", "t2"), more_paths=found[1:])
    assert [case.name for case in cases] == ["p0_t1", "p1_t1"]
    assert [c.more_channels[0][0] for c in cases] == found[1]


def test_names_that_share_no_rule_are_matched_by_an_expression(tmp_path):
    for case in ("a", "b"):
        for name in ("t1", "t2"):
            write(tmp_path / f"{case}_{name}.nii.gz", image(SHAPE))
    found = [sorted(tmp_path.glob(f"*_{name}.nii.gz")) for name in ("t1", "t2")]
    with pytest.raises(UserError, match="--match"):
        cases_of(found[0], channels=("t1", "t2"), more_paths=found[1:])
    cases = cases_of(
        found[0], channels=("t1", "t2"), more_paths=found[1:], match="([ab])_t"
    )
    assert [case.name for case in cases] == ["a_t1", "b_t1"]


def test_two_files_of_one_channel_are_named(tmp_path):
    two_channels(tmp_path)
    write(tmp_path / "images/x0_0001.nii", image(SHAPE))
    with pytest.raises(UserError, match="hold the same channel; keep one"):
        cases_of(sorted((tmp_path / "images").iterdir()), channels=(0, 1))


def test_pixels_in_steps_have_a_scale_a_channel(tmp_path):
    two_channels(tmp_path)
    voxels = image(SHAPE)
    voxels[0, 0, 0] = 30_000
    write(tmp_path / "images/x0_0001.nii.gz", voxels)
    options = dataclasses.replace(OPTIONS, clip_percentiles=(0, 100))
    volume = prepare_case(make(tmp_path).cases[0], options, (0,))
    store = SimpleNamespace(
        infos=(volume.info,), class_names=("a", "b"), volume=lambda row: volume
    )
    plan = Plan(
        table=slice_table(store.infos, [0]),
        seed=0,
        batch_size=5,
        crop_size=(32, 32),
        random_crop=False,
        shuffle=False,
        sampling="slices",
        last_batch="drop",
    )
    lines = load_lines(store, plan, label=False, dtype="uint8")
    grey = lines.scale[0] * (lines.image.astype(np.float32) - lines.zero[0])
    grey = grey.reshape(5, 32, 32, 2)[:, 7:25, 6:26]  # centred
    ranges = np.ptp(volume.image, axis=(0, 1, 2))
    assert ranges[1] > 4 * ranges[0]
    for channel in range(2):
        worst = np.abs(grey - volume.image)[..., channel].max()
        assert worst <= 0.51 * ranges[channel] / 255


def test_an_array_needs_all_channels():
    volume = np.stack([image(SHAPE), image(SHAPE, seed=1)], axis=-1)
    found = SEGMENTER.predict(volume, (1, 1, 4))
    expected = np.where(volume[..., 1] > volume[..., 1].mean(), 255, 0)
    np.testing.assert_array_equal(found, expected)
    for odd in (volume[..., 0], volume[..., :1], volume[..., [0, 1, 1]]):
        with pytest.raises(UserError, match=r"expected \[X, Y, Z, 2\]"):
            SEGMENTER.predict(odd, (1, 1, 4))


def test_channels_move_together_and_change_by_themselves():
    keys = sample_keys(jax.random.key(3), jnp.arange(4))
    one = jax.random.normal(jax.random.key(0), (4, 32, 32, 1))
    two = jnp.concatenate([one, one + 2], axis=-1)
    spatial = augment.make(
        "spatial",
        resample_probability=1.0,
        elastic_alpha=(20.0, 40.0),
        elastic_sigma=(4.0, 5.0),
        scale=(0.8, 1.2),
        image_order=1,
    )
    moved, _ = spatial(keys, two, None)
    alone, _ = spatial(keys, one, None)
    np.testing.assert_array_equal(moved[..., :1], alone)
    np.testing.assert_array_equal(moved[..., 1:], spatial(keys, one + 2, None)[0])
    ranges = {"brightness": (-1.0, 1.0), "contrast": (0.5, 2.0), "clip": ()}
    changed, _ = augment.make("intensity", **ranges)(keys, two, None)
    for row in range(4):
        fits = [
            np.polyfit(before.ravel(), after.ravel(), 1)
            for before, after in zip(
                np.moveaxis(np.asarray(two[row]), -1, 0),
                np.moveaxis(np.asarray(changed[row]), -1, 0),
                strict=True,
            )
        ]
        assert abs(fits[0][0] - fits[1][0]) > 1e-3  # another contrast


def segment_by(folder):
    data = bytearray((folder / "export/model.jax_export").read_bytes())
    return jax.export.deserialize(data).call


@pytest.mark.parametrize(
    "pipeline", ["numpy", "device", pytest.param("tf", marks=pytest.mark.tf)]
)
def test_a_run_of_two_channels_from_check_to_export(
    tmp_path, monkeypatch, capsys, pipeline
):
    monkeypatch.setattr(workers.futures, "ProcessPoolExecutor", InlinePool)
    data = tmp_path / "data"
    nifti_tree(data)
    for number, path in enumerate(sorted((data / "images").iterdir())):
        write(data / "second" / path.name, image(SHAPE, seed=50 + number))
    given = ["--config.data.options.more_images=('second',)"]
    config = config_for(tmp_path, "pcl", *given, f"--config.data.pipeline={pipeline}")
    (tmp_path / "tiny.py").write_text(
        "import json, ml_collections\n"
        "def get_config(arg=None):\n"
        f"    return ml_collections.ConfigDict(json.loads({config.to_json()!r}))\n"
    )
    workdir = tmp_path / "run"
    code, err = call_main(
        capsys,
        f"--config={tmp_path / 'tiny.py'}",
        f"--workdir={workdir}",
        "--devices=2",
    )
    assert code == 0, err
    about = json.loads((workdir / "dataset.json").read_text())
    assert about["channels"] == ["images", "second"]

    first = sorted((data / "images").iterdir())[0]
    second = data / "second" / first.name

    def command(*args):
        with clean_process():
            status = main([str(arg) for arg in args])
        assert status == 0, capsys.readouterr().err

    command("share", workdir, f"--out={tmp_path / 'model'}")
    out = tmp_path / "out"
    images = [f"--images={first}", f"--more_images={second}"]
    command("predict", f"--model={tmp_path / 'model'}", *images, f"--out={out}")
    volume = np.stack([nib.load(p).get_fdata() for p in (first, second)], axis=-1)
    segmenter = pclseg.load(tmp_path / "model")
    affine = nib.load(first).affine
    found = segmenter.predict(volume, affine=affine)
    written = np.asanyarray(nib.load(out / first.name).dataobj)
    np.testing.assert_array_equal(found, written)
    if pipeline == "numpy":  # exported alike, whatever it was fed by
        command("export", tmp_path / "model", f"--out={tmp_path / 'export'}")
        text = (tmp_path / "export/README.md").read_text()
        assert "float32 [Z, H, W, 2]" in text and "images, second." in text
        for number, path in enumerate((first, second)):
            shutil.copy(path, tmp_path / f"channel{number}.nii.gz")
        monkeypatch.chdir(tmp_path)
        for block in text.split("```python\n")[1:]:
            code = block.split("```")[0]
            if "scans = " in code:
                exec(code, names := {"segment": segment_by(tmp_path)})
        labels = np.asanyarray(nib.load("label.nii.gz").dataobj)
        assert (labels == found).mean() > 0.99 and names["volume"].shape[-1] == 2
