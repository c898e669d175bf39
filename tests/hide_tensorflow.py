"""Makes this process believe that TensorFlow is not installed."""

from importlib.machinery import PathFinder


def hide_tensorflow() -> None:
    """Lets no import find the package `tensorflow`; comes before its first import."""
    find = PathFinder.find_spec

    def find_spec(fullname, path=None, target=None):
        if fullname.partition(".")[0] == "tensorflow":
            return None
        return find(fullname, path, target)

    PathFinder.find_spec = staticmethod(find_spec)
