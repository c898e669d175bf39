"""Training methods, one file each; `ls` is the list."""

from pclseg.methods.base import Method
from pclseg.named import make_named


def make(name: str, **kwargs: object) -> Method:
    """Makes the method of file `methods/<name>.py`.

    Raises:
        UserError: no such method; the nearest name is given.
    """
    return make_named("method", __name__, __path__, name, hidden={"base"}, **kwargs)
