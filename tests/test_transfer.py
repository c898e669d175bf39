"""Transfer of the encoder: what is copied, what is not, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from pclseg import models
from pclseg.errors import UserError
from pclseg.state import TrainState
from pclseg.train.transfer import started, transfer, variables

IMAGES = jnp.zeros((1, 16, 16, 1))


def _variables(name, fill, **fields):
    model = models.make(
        name, **{"width": 2, "dtype": "float32", "bn_groups": 1, **fields}
    )
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES, train=False))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, fill, "float32"), shapes)


def _size(variables, prefix):
    parts = [tree[prefix] for tree in variables.values()]
    return sum(leaf.size for leaf in jax.tree.leaves(parts))


@pytest.fixture
def source():
    return _variables("unet2d_contrast", 1.0, out_dim=3)


@pytest.fixture
def target():
    return _variables("unet2d", 0.0, num_classes=3)


def test_every_encoder_leaf_is_copied_and_no_other(source, target):
    merged, receipt = transfer(source, target, parts=["encoder"])
    assert jax.tree.structure(merged) == jax.tree.structure(target)
    for path, leaf in traverse_util.flatten_dict(merged).items():
        assert (leaf == (1.0 if path[1] == "encoder" else 0.0)).all(), path
    # Kernels and biases of 10 convolutions; scale, shift and statistics of 8 norms.
    assert len(receipt.loaded) == 10 * 2 + 8 * 4
    assert ("batch_stats/encoder/level4/norm2/var", (16,)) in receipt.loaded
    assert ("params/encoder/centre/conv2/kernel", (3, 3, 32, 32)) in receipt.loaded


def test_receipt_lists_what_was_skipped_and_what_is_fresh(source, target):
    _, receipt = transfer(source, target, parts=["encoder"])
    assert receipt.skipped == (
        ("params/head/dense1/bias", (32,)),
        ("params/head/dense1/kernel", (32, 32)),
        ("params/head/dense2/bias", (3,)),
        ("params/head/dense2/kernel", (32, 3)),
    )
    leaves = traverse_util.flatten_dict(target, sep="/")
    assert {path for path, _ in receipt.fresh} == {
        path for path in leaves if "/decoder/" in path
    }


def test_text_counts_the_leaves_and_shows_shapes_by_layer(source, target):
    text = transfer(source, target, parts=["encoder"])[1].text()
    assert text.splitlines()[:3] == [
        f"loaded     52 leaves {_size(target, 'encoder'):>12,} numbers",
        "skipped     4 leaves        1,155 numbers",
        f"fresh      57 leaves {_size(target, 'decoder'):>12,} numbers",
    ]
    assert "skipped  params/head/dense2: bias (3,), kernel (32, 3)" in text
    assert "loaded   batch_stats/encoder/level1/norm1: mean (2,), var (2,)" in text


def test_other_width_is_refused_with_the_first_differing_leaf(source):
    target = _variables("unet2d", 0.0, num_classes=3, width=3)
    with pytest.raises(UserError) as error:
        transfer(source, target, parts=["encoder"])
    message = str(error.value)
    first = next(
        "/".join(path)
        for path in traverse_util.flatten_dict(target)
        if path[1] == "encoder"
    )
    assert first in message
    assert "is (2,) in the source, but (3,) in the new network" in message
    assert "model.width" in message
    assert "\n" not in message


def test_missing_and_surplus_leaves_are_refused(source, target):
    del source["params"]["encoder"]["level2"]["conv1"]["bias"]
    with pytest.raises(UserError, match="level2/conv1/bias is missing in the source"):
        transfer(source, target, parts=["encoder"])
    with pytest.raises(UserError, match=r"is \(4,\) in the source, but missing"):
        transfer(target, source, parts=["encoder"])


def test_a_part_that_one_side_lacks_is_refused(source, target):
    with pytest.raises(UserError, match="weights have no 'decoder' .* encoder, head,"):
        transfer(source, target, parts=["encoder", "decoder"])
    with pytest.raises(
        UserError, match="new network has no 'head' .* decoder, encoder"
    ):
        transfer(source, target, parts=["head"])
    with pytest.raises(UserError, match="weights have no 'enc'"):
        transfer(source, target, parts=["enc"])


def test_layers_of_the_decoder_are_parts(target):
    local = _variables("unet2d_local", 1.0, out_dim=3)
    parts = ["encoder", "decoder/up4", "decoder/level4"]
    merged, receipt = transfer(local, target, parts=parts)
    for path, leaf in traverse_util.flatten_dict(merged).items():
        copied = path[1] == "encoder" or path[2] in ("up4", "level4")
        assert (leaf == (1.0 if copied else 0.0)).all(), path
    # Beside the encoder two convolutions, two norms, one transposed convolution.
    assert len(receipt.loaded) == 52 + 2 * 2 + 2 * 4 + 2
    assert ("batch_stats/decoder/level4/norm1/mean", (16,)) in receipt.loaded
    with pytest.raises(UserError, match="decoder/level1/.* is missing in the source"):
        transfer(local, target, parts=["decoder"])


def test_inputs_are_left_as_they_were(source, target):
    transfer(source, target, parts=["encoder"])
    assert all((leaf == 0.0).all() for leaf in jax.tree.leaves(target))


# A teacher.


def _with_teacher(fill, **fields):
    """Variables whose teacher has larger numbers by one half."""
    own = _variables("unet2d_contrast", fill, **fields)
    teacher = jax.tree.map(lambda leaf: leaf + 0.5, own)
    return variables(
        own["params"], {"batch_stats": own["batch_stats"]}, {"teacher": teacher}
    )


def _state(target):
    own = {
        kind: {name: leaf for name, leaf in tree.items() if name != "teacher"}
        for kind, tree in target.items()
    }
    teacher = {kind: tree["teacher"] for kind, tree in target.items()}
    return TrainState(
        step=np.int32(0),
        params=own["params"],
        opt_state=(),
        model_state={"batch_stats": own["batch_stats"]},
        method_state={"teacher": teacher, "bank": np.zeros(3)},
    )


@pytest.mark.parametrize(
    ("parts", "student", "teacher"),
    [
        (["encoder"], 1.0, 1.0),  # the teacher begins as the student does
        (["encoder", "teacher/encoder"], 1.0, 1.5),  # as the earlier teacher ended
        (["teacher/encoder"], 0.0, 1.5),
    ],
)
def test_a_teacher_begins_as_the_student_or_as_the_earlier_teacher(
    parts, student, teacher
):
    source, target = _with_teacher(1.0, out_dim=3), _with_teacher(0.0, out_dim=3)
    merged, receipt = transfer(source, target, parts=parts)
    state = started(_state(target), merged, parts=parts)
    found = state.method_state["teacher"]
    assert set(state.params) == {"encoder", "head"}
    for own, expected in (
        ({"params": state.params, **state.model_state}, student),
        (found, teacher),
    ):
        for tree in own.values():
            for leaf in jax.tree.leaves(tree["encoder"]):
                assert (leaf == expected).all()
    assert (found["params"]["head"]["dense1"]["kernel"] == 0.0).all()  # the student's
    assert (
        found["params"]["head"]["dense1"]["kernel"]
        is not (state.params["head"]["dense1"]["kernel"])
    )
    assert state.method_state["bank"].shape == (3,)
    assert not any("teacher" in name for name, _ in receipt.fresh)


def test_a_teacher_of_another_shape_is_refused_by_its_leaf():
    source = _with_teacher(1.0, out_dim=3, width=4)
    target = _with_teacher(0.0, out_dim=3)
    with pytest.raises(UserError, match="params/teacher/encoder/centre/conv1/bias is"):
        transfer(source, target, parts=["teacher/encoder"])


def test_weights_without_a_teacher_cannot_hand_one_on(source):
    with pytest.raises(UserError, match="the weights have no 'teacher/encoder'"):
        transfer(source, _with_teacher(0.0, out_dim=3), parts=["teacher/encoder"])
