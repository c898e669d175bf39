"""Pickles as data: what a file names is never looked up, imported or called.

The `pickle` of Python executes what a file asks for. Here `pickletools` splits the file
into opcodes, and a machine follows the few of which a dict of tensors is made. It can
make only texts, numbers, tuples, lists, dicts, and what the caller's constructors give.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

_MOST_ARGUMENTS = 8


class Refused(Exception):
    """A pickle asks for more than data; the message goes on from "the file"."""


@dataclasses.dataclass(frozen=True)
class Global:
    """A name that a pickle holds, such as "torch.FloatStorage": a text, no object."""

    name: str


def read_pickle(
    file: BinaryIO,
    *,
    constructors: Mapping[str, Callable[..., Any]],
    names: frozenset[str] = frozenset(),
    load: Callable[[Any], Any] | None = None,
) -> Any:
    """The value of the pickle that `file` stands at; leaves it behind the pickle.

    Containers may hold themselves, so a caller must not descend without a limit.

    Args:
        file: in memory, since the pickle may declare any length.
        constructors: what a call of the name in the pickle is to give, which must
            check its arguments: they are made of anything.
        names: further names that it may hold, which give a `Global`.
        load: persistent id -> value.

    Raises:
        Refused: a name that is not listed, or an opcode that weights do not need.
        Exception: of any kind, where the pickle is damaged.
    """
    machine = _Machine(constructors, names, load)
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "STOP":
            return machine.stack.pop()
        if opcode.name not in _OPCODES:
            raise Refused(f"has the pickle opcode {opcode.name}")
        _OPCODES[opcode.name](machine, argument)
    raise EOFError


class _Machine:
    """What the opcodes work on."""

    def __init__(
        self,
        constructors: Mapping[str, Callable[..., Any]],
        names: frozenset[str],
        load: Callable[[Any], Any] | None,
    ) -> None:
        self.constructors, self.names, self.load = constructors, names, load
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def pop_tuple(self, size: int) -> None:
        items = [self.stack.pop() for _ in range(size)]
        self.push(tuple(reversed(items)))

    def push_global(self, name: str) -> None:
        if name not in self.constructors and name not in self.names:
            raise Refused(f"names {name!r:.100}")
        self.push(Global(name))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError
        self.push_global(f"{module}.{name}")

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not (isinstance(function, Global) and isinstance(arguments, tuple)):
            raise TypeError
        # A few bytes may name the same long tuple again and again.
        if len(arguments) > _MOST_ARGUMENTS:
            raise ValueError
        self.push(self.constructors[function.name](*arguments))

    def build(self) -> None:
        # Attributes of an OrderedDict: state_dict() has its versions in `_metadata`.
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            raise Refused("sets the attributes of an object")

    def persistent(self) -> None:
        if self.load is None:
            raise TypeError
        self.push(self.load(self.stack.pop()))

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        keys = items[::2]
        # No other key is hashed: that of nested tuples can exhaust the C stack.
        if type(self.stack[-1]) is not dict or {type(k) for k in keys} - {str, int}:
            raise TypeError
        self.stack[-1].update(zip(keys, items[1::2], strict=True))


_Opcode = Callable[[_Machine, Any], None]
_OPCODES: dict[str, _Opcode] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, arg: None),
    **dict.fromkeys(
        (
            *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
            *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        ),
        lambda m, arg: m.push(arg),
    ),
    "NONE": lambda m, arg: m.push(None),
    "NEWTRUE": lambda m, arg: m.push(True),
    "NEWFALSE": lambda m, arg: m.push(False),
    "EMPTY_DICT": lambda m, arg: m.push({}),
    "EMPTY_LIST": lambda m, arg: m.push([]),
    "EMPTY_TUPLE": lambda m, arg: m.push(()),
    "TUPLE1": lambda m, arg: m.pop_tuple(1),
    "TUPLE2": lambda m, arg: m.pop_tuple(2),
    "TUPLE3": lambda m, arg: m.pop_tuple(3),
    "TUPLE": lambda m, arg: m.push(tuple(m.pop_to_mark())),
    "MARK": lambda m, arg: m.marks.append(len(m.stack)),
    "APPEND": lambda m, arg: m.extend([m.stack.pop()]),
    "APPENDS": lambda m, arg: m.extend(m.pop_to_mark()),
    "SETITEM": lambda m, arg: m.update([m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m, arg: m.update(m.pop_to_mark()),
    **dict.fromkeys(
        ("BINPUT", "LONG_BINPUT"), lambda m, arg: m.memo.update({arg: m.stack[-1]})
    ),
    "MEMOIZE": lambda m, arg: m.memo.update({len(m.memo): m.stack[-1]}),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, arg: m.push(m.memo[arg])),
    # pickletools joins the two lines, module and name, by a space.
    **dict.fromkeys(
        ("GLOBAL", "INST"), lambda m, arg: m.push_global(arg.replace(" ", ".", 1))
    ),
    "STACK_GLOBAL": lambda m, arg: m.stack_global(),
    "REDUCE": lambda m, arg: m.reduce(),
    "BUILD": lambda m, arg: m.build(),
    "BINPERSID": lambda m, arg: m.persistent(),
}
