"""Modules by file name, and what a config gives them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pclseg import methods
from pclseg.errors import UserError
from pclseg.named import check_arguments, checked_call, make_named, nearest


def make(
    *,
    model: Any,
    width: int,
    scale: float,
    flag: bool,
    name: str,
    sizes: Sequence[float] = (),
    where: str | Sequence[str] = "",
) -> dict:
    return dict(model=model, width=width, scale=scale, flag=flag, name=name, more=sizes)


GOOD = dict(model=object(), width=3, scale=0.5, flag=True, name="x")


def test_nearest_name_is_suggested_or_none():
    assert nearest("plc", ["gcl", "pcl", "simclr"]) == " Did you mean 'pcl'?"
    assert nearest("zzz", ["gcl", "pcl"]) == ""


def test_module_is_found_by_file_name():
    with pytest.raises(UserError, match="needs the setting 'model'"):
        methods.make("pcl")


def test_unknown_name_lists_the_files_and_the_nearest():
    with pytest.raises(UserError) as caught:
        make_named("method", "pclseg.methods", methods.__path__, "plc", hidden={"base"})
    (folder,) = methods.__path__
    files = {path.stem for path in Path(folder).glob("*.py")} - {"__init__", "base"}
    assert str(caught.value) == (
        f"method 'plc' is unknown; known are: {', '.join(sorted(files))}."
        " Did you mean 'pcl'?"
    )


def test_hidden_module_is_no_choice():
    with pytest.raises(UserError, match="'base' is unknown"):
        methods.make("base")


def test_checked_call_passes_arguments_on():
    assert checked_call(make, "thing", **GOOD) == {**GOOD, "more": ()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(widht=3), "thing knows no setting 'widht'; it has: width, scale, flag,"),
        (dict(widht=3), "Did you mean 'width'?"),
        (dict(width=3.0), "thing: width is 3.0; expected a whole number."),
        (dict(width=True), "thing: width is True; expected a whole number."),
        (dict(width="3"), "thing: width is '3'; expected a whole number."),
        (dict(scale="1"), "thing: scale is '1'; expected a number."),
        (dict(scale=False), "thing: scale is False; expected a number."),
        (dict(scale=float("nan")), "thing: scale is nan; expected a number."),
        (dict(scale=float("inf")), "thing: scale is inf; expected a number."),
        (dict(flag=1), "thing: flag is 1; expected True or False."),
        (dict(name=("x",)), "thing: name is ('x',); expected a text."),
        (dict(sizes=3), "thing: sizes is 3; expected a list of numbers."),
        (dict(sizes=("a",)), "thing: sizes is ('a',); expected a list of numbers."),
        (dict(where=3), "thing: where is 3; expected a text or a list of texts."),
    ],
)
def test_unfit_argument_is_named_with_what_is_expected(change, said):
    with pytest.raises(UserError) as caught:
        check_arguments(make, "thing", {**GOOD, **change})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [dict(scale=1), dict(sizes=[1, 2.5]), dict(where="x"), dict(where=("x", "y"))],
)
def test_fitting_argument_passes(change):
    check_arguments(make, "thing", {**GOOD, **change})


def test_missing_argument_is_named():
    without = {key: value for key, value in GOOD.items() if key != "flag"}
    with pytest.raises(UserError, match="thing needs the setting 'flag'"):
        check_arguments(make, "thing", without)


def test_make_that_takes_any_name_is_not_second_guessed():
    assert checked_call(lambda **kwargs: kwargs, "thing", x=1) == {"x": 1}


def test_make_without_settings_says_so():
    with pytest.raises(UserError, match="it has: none"):
        check_arguments(lambda *, model: model, "thing", {"model": 1, "x": 2})
