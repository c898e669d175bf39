"""What the settings of a method must be."""

from pclseg.errors import UserError


def require(name: str, value: object, expected: str, holds: bool) -> None:
    """Raises UserError unless `holds`.

    Args:
        name: of the setting.
        value: that it has.
        expected: in words.
        holds: whether the value is so.
    """
    if not holds:
        raise UserError(f"method.{name} is {value}; expected {expected}.")
