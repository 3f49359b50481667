"""What the pickle in a file of torch.save describes: tensors, objects and plain values, none of them made.

A name is taken for a word: a tensor becomes a `Stored`, which says where its numbers lie, any other object an `Opaque`,
which says how it would have been made. Nothing is imported or called. With `only`, for files that torch.load will open
afterwards (common/archives.py), every name but these is refused, and every opcode that makes an object of another kind.
"""

import re
from dataclasses import dataclass
from typing import Any

from common.errors import InputError
from common.restricted_pickle import Machine, reason_of

MAX_DESCRIBED = 1_000_000  # values of a checkpoint's pickle: its objects have thousands, and see RUN
MAX_NAME = 200  # characters of a name, and of a storage's key: two long strings joined over and over fill any memory
MAX_KEY = 1000  # characters of a dict's key, and below:
MAX_INT_KEY = 2**60  # larger ones may share one hash, and take the square of their number in time
MAX_DIMS = 8  # of a tensor
MAX_ARGUMENTS = 6  # of _rebuild_tensor_v2, without the metadata of tensors of other kinds
MORE_ATOMS = {"BINFLOAT", "FLOAT", "LONG", "LONG4", "BINSTRING", "SHORT_BINSTRING", "STRING"}
# A run of BINFLOATs: the published code logs the loss of every step, millions of them. They are skipped in one go.
RUN = re.compile(rb"(?:G.{8}){64,100000}", re.DOTALL)

# What torch.save calls the parts of a tensor, and the containers in a state_dict.
REBUILT = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
PARAMETER = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
DICTS = {"collections.OrderedDict", "collections.defaultdict"}
KEYS = str | bytes | int | float | None  # other keys are left out: a nested tuple's hash may take for ever


@dataclass(frozen=True)
class Name:
    """What a pickle wanted imported: "module.name"."""

    name: str


@dataclass(frozen=True)
class Storage:
    """An array of numbers elsewhere in the file: its key there, torch's name of its type, how many numbers."""

    key: str
    kind: str  # "torch.FloatStorage"
    numel: int


@dataclass(frozen=True)
class Stored:
    """A tensor: where in a storage its numbers lie. Checked where they are read (common/torch_files.py)."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(eq=False)
class Opaque:
    """An object that was not made: "module.name" of what would have made it, and the state it would have been given."""

    name: str
    state: Any = None


@dataclass(frozen=True)
class Skipped:
    """So many numbers that were not kept."""

    count: int


@dataclass(frozen=True)
class Described:
    """A pickle's value, the byte after it, and all storages that it refers to, by key."""

    value: Any
    end: int
    storages: dict[str, Storage]


def describe(data: bytes, where: str, start: int = 0, only: set[str] | None = None) -> Described:
    """Return what the pickle at `start` in `data` describes.

    Built are str, bytes, numbers, bool, None, tuples, lists, dicts, and the five classes above. A container may be in
    itself, as in any pickle: who walks through them must remember where they were. InputError for what is damaged or
    too much, for a reference to anything outside but a storage, and for opcodes that no torch.save writes. `only`: the
    names that it may ask for; InputError for another, and for what is neither a tensor, an OrderedDict nor plain.
    """
    try:
        machine = _Describer(data, start) if only is None else _Refuser(data, start, only)
        return Described(*machine.run(), machine.storages)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise InputError(
            f"{where}: {reason_of(error)}: damaged, or not of torch.save; nothing of it was executed; copy it again"
        ) from None


class _Describer(Machine):
    """The opcodes of torch.save besides: names, objects and dicts, none of them made. Depth is not counted."""

    most = MAX_DESCRIBED

    def __init__(self, data: bytes, start: int) -> None:
        super().__init__(data, start)
        self.storages: dict[str, Storage] = {}

    def _step(self, name: str, argument: Any, place: int) -> None:
        if name == "BINFLOAT" and (run := RUN.match(self.data, place)):
            self._push(Skipped((run.end() - place) // 9))
            self.stream.seek(run.end())
        elif name in MORE_ATOMS:
            self._push(argument)
        elif name == "GLOBAL":
            self._push(Name(_word(argument).replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = self._pop()[0], self._pop()[0]
            self._push(Name(f"{_word(module)}.{_word(attribute)}"))
        elif name == "BINPERSID":
            found = _persistent(self._pop()[0], place)
            if isinstance(found, Storage) and self.storages.setdefault(found.key, found) != found:
                raise ValueError(f"storage {found.key[:40]}: two types or sizes")
            self._push(found)
        elif name == "REDUCE":
            arguments, made_by = self._pop()[0], self._pop()[0]
            self._push(_reduced(_name(made_by), arguments))
        elif name in ("NEWOBJ", "NEWOBJ_EX"):
            parts = [self._pop()[0] for _ in range(2 if name == "NEWOBJ" else 3)]
            self._push(Opaque(_name(parts[-1])))
        elif name == "INST":
            self._pop_to_mark()
            self._push(Opaque(_word(argument).replace(" ", ".", 1)))
        elif name == "OBJ":
            self._push(Opaque(_name(self._pop_to_mark()[0][0])))
        elif name == "BUILD":
            state, target = self._pop()[0], self._top()
            if isinstance(target, Opaque):
                target.state = state
            elif not isinstance(target, dict | Stored):  # an OrderedDict's own attributes, a tensor's: not needed
                raise ValueError(f"BUILD of a {type(target).__name__} at byte {place}")
        elif name in ("EMPTY_DICT", "DICT"):
            items = self._pop_to_mark() if name == "DICT" else []
            self._push({})
            self._set(items)
        elif name in ("SETITEM", "SETITEMS"):
            self._set([self._pop(), self._pop()][::-1] if name == "SETITEM" else self._pop_to_mark())
        elif name == "EMPTY_SET":
            self._push(Opaque("builtins.set"))
        elif name in ("ADDITEMS", "FROZENSET"):
            self._pop_to_mark()
            if name == "FROZENSET":
                self._push(Opaque("builtins.frozenset"))
        elif name == "POP":  # also of a mark: how a tuple that holds itself is written
            self.stack.pop()
        elif name == "POP_MARK":
            self._pop_to_mark()
        else:
            super()._step(name, argument, place)

    def _get(self, name: str, value: Any, place: int) -> None:
        self._push(value)

    def _push_container(self, value: Any, items: list[tuple[Any, int]]) -> None:
        self._push(value)

    def _append(self, items: list[tuple[Any, int]]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(value for value, _ in items)
        elif not isinstance(target, Opaque):  # the items of a list that was not made are not kept
            raise ValueError(f"APPEND to a {type(target).__name__}")

    def _set(self, items: list[tuple[Any, int]]) -> None:
        target = self._top()
        if len(items) % 2 or not isinstance(target, dict | Opaque):
            raise ValueError(f"SETITEMS: {len(items)} keys and values for a {type(target).__name__}")
        if isinstance(target, dict):
            target |= {k: v for (k, _), (v, _) in zip(items[::2], items[1::2], strict=True) if _is_key(k)}


class _Refuser(_Describer):
    """Refuses all that torch.load would make besides tensors, plain dicts and OrderedDicts, lists, and plain values."""

    def __init__(self, data: bytes, start: int, only: set[str]) -> None:
        super().__init__(data, start)
        self.only = only

    def _step(self, name: str, argument: Any, place: int) -> None:
        if name == "REDUCE" and isinstance(arguments := self._top(), tuple) and len(arguments) > MAX_ARGUMENTS:
            raise ValueError(f"a tensor of {len(arguments)} parts at byte {place}")
        if name == "BUILD":  # torch copies an OrderedDict's attributes one by one
            (state, _), (target, _) = self.stack[-1], self.stack[-2]
            if not isinstance(state, dict) or not isinstance(target, dict):
                raise ValueError(f"BUILD of a {type(target).__name__} at byte {place}")
            self.built += len(state)
        super()._step(name, argument, place)
        made = self.stack[-1][0] if self.stack else None
        if isinstance(made, Opaque) or (isinstance(made, Name) and made.name not in self.only):
            raise ValueError(f"asks for {made.name}, tensors and plain data were expected")
        if name == "BINPERSID" and not (isinstance(made, Storage) and made.kind in self.only - REBUILT - PARAMETER):
            raise ValueError(f"persistent id at byte {place}: a storage was expected")
        if name == "REDUCE" and isinstance(made, Stored) and _end(made) > made.storage.numel:
            raise ValueError(f"a tensor of shape {made.size} reaches beyond its {made.storage.numel} numbers")

    def _set(self, items: list[tuple[Any, int]]) -> None:
        if other := [key for key, _ in items[::2] if not isinstance(key, KEYS)]:
            raise ValueError(f"a dict's key is a {type(other[0]).__name__}")
        super()._set(items)


def _end(tensor: Stored) -> int:
    """Return the number in its storage behind a tensor's last one."""
    last = sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True))
    return tensor.offset + (last + 1 if all(tensor.size) else 0)


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} where a name was expected")
    if len(value) > MAX_NAME:
        raise ValueError(f"a name of {len(value)} characters")
    return value


def _is_key(value: Any) -> bool:
    """Return whether a dict keeps this key. ValueError for one that takes long to find: long, or a huge number."""
    if isinstance(value, int) and abs(value) >= MAX_INT_KEY:
        raise ValueError("a dict's key is a number of 2^60 or more")
    if isinstance(value, str | bytes) and len(value) > MAX_KEY:
        raise ValueError(f"a dict's key has {len(value)} characters")
    return isinstance(value, KEYS)


def _name(value: Any) -> str:
    """Return the name of what would have been called; what an object would have been called with, is opaque too."""
    if isinstance(value, Name | Opaque):
        return value.name
    raise ValueError(f"a {type(value).__name__} where a name was expected")


def _persistent(value: Any, place: int) -> Any:
    """Return the Storage that a persistent id refers to, or the Name of a module's class with its source."""
    if isinstance(value, tuple) and len(value) in (4, 5, 6) and isinstance(value[1], Name):
        kind, made_by, key, *rest = value
        if kind == "module" and len(value) == 4:
            return made_by
        whole = len(value) == 5 or (len(value) == 6 and value[5] is None)  # the older form has views of storages
        if kind == "storage" and whole and isinstance(key, str) and _is_count(rest[1]):
            return Storage(_word(key), made_by.name, rest[1])
    raise ValueError(f"persistent id at byte {place}: a storage was expected")


def _reduced(made_by: str, arguments: Any) -> Any:
    """Return what REDUCE stands for: a dict, a Stored, or an Opaque."""
    if not isinstance(arguments, tuple):
        raise ValueError(f"arguments of {made_by[:60]}: a tuple was expected, found a {type(arguments).__name__}")
    if made_by in DICTS and (not arguments or made_by.endswith("defaultdict")):
        return {}
    if made_by in PARAMETER and arguments and isinstance(arguments[0], Stored):
        return arguments[0]
    if made_by in REBUILT and len(arguments) >= 4:
        storage, offset, size, stride = arguments[:4]
        both = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= MAX_DIMS
        if both and isinstance(storage, Storage) and all(map(_is_count, (offset, *size, *stride))):
            return Stored(storage, offset, size, stride)
        raise ValueError("a tensor without storage, size and stride that fit one another")
    return Opaque(made_by)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62
