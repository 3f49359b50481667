"""The one reader of pickles: what is in published tile stores and checkpoints, with nothing executed.

It interprets the opcodes itself. `load_plain`, for tile stores, knows only those that build bytes, str, int, bool,
None, tuples and lists; those that import, call or build objects (GLOBAL, STACK_GLOBAL, INST, OBJ, NEWOBJ, REDUCE,
BUILD, EXT, PERSID and all others) are refused by name. `describe`, for files of torch.save, takes a name for a word: a
tensor becomes a `Stored`, which says where its numbers lie, any other object an `Opaque`, which says how it would have
been made. Nothing is imported or called for either, and Python's own unpickling machine is never started.
"""

import io
import pickletools
import re
from dataclasses import dataclass
from typing import Any

from common.errors import InputError

MAX_VALUES = 100_000  # values of one pickle; by default a published store lists 2,000 keys, and a tile has 6 values
MAX_DEPTH = 8  # of nesting
MAX_DESCRIBED = 1_000_000  # values of a checkpoint's pickle: its objects have thousands, and see RUN
STEPS = 4  # opcodes for each value: marks and memo entries take memory too
MAX_NAME = 200  # characters of a name, and of a storage's key: two long strings joined over and over fill any memory
MAX_KEY = 1000  # characters of a dict's key, and below:
MAX_INT_KEY = 2**60  # larger ones may share one hash, and take the square of their number in time
MAX_DIMS = 8  # of a tensor
ATOMS = {
    "BININT", "BININT1", "BININT2", "LONG1", "INT",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE",
}  # fmt: skip
MORE_ATOMS = {"BINFLOAT", "FLOAT", "LONG", "LONG4", "BINSTRING", "SHORT_BINSTRING", "STRING"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS, GETS = {"BINPUT", "LONG_BINPUT", "PUT"}, {"BINGET", "LONG_BINGET", "GET"}
MARK = object()
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


def load_plain(data: bytes, where: str) -> Any:
    """Return the value that the pickle `data` describes: bytes, str, int, bool, None, tuples and lists only.

    `where` names it in the InputError about anything else in it, about what is cut short, too deep or too much. Only
    bytes and str are taken from the memo, so that no list can be named twice and grow by itself.
    """
    try:
        value, end = _Machine(data).run()
        if end != len(data):
            raise ValueError(f"{len(data) - end} bytes after its end")
        return value
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise InputError(
            f"{where}: {_reason(error)}: not the plain bytes, text and "
            "numbers of the published tile stores; nothing of it was executed; make the tiles again from the slides"
        ) from None


def describe(data: bytes, where: str, start: int = 0) -> Described:
    """Return what the pickle at `start` in `data` describes.

    Built are str, bytes, numbers, bool, None, tuples, lists, dicts, and the five classes above. A container may be in
    itself, as in any pickle: who walks through them must remember where they were. InputError for what is damaged or
    too much, for a reference to anything outside but a storage, and for opcodes that no torch.save writes.
    """
    try:
        machine = _Describer(data, start)
        return Described(*machine.run(), machine.storages)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise InputError(
            f"{where}: {_reason(error)}: damaged, or not of torch.save; nothing of it was executed; copy it again"
        ) from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


class _Machine:
    most = MAX_VALUES

    def __init__(self, data: bytes, start: int = 0) -> None:
        self.data, self.stream = data, io.BytesIO(data)
        self.stream.seek(start)
        self.stack: list[tuple[Any, int]] = []  # value, depth of its nesting
        self.memo: dict[int, Any] = {}
        self.built = 0

    def run(self) -> tuple[Any, int]:
        """Return the value and where it ends. ValueError, IndexError or KeyError where the data is anything else."""
        for count, (opcode, argument, place) in enumerate(pickletools.genops(self.stream)):
            name = opcode.name
            if count > STEPS * self.most:
                raise ValueError(f"more than {STEPS * self.most} opcodes")
            if name == "STOP":
                if len(self.stack) != 1:
                    raise ValueError(f"{len(self.stack)} values at its end")
                return self._pop()[0], place + 1
            self._step(name, argument, place)
        raise ValueError("no STOP at its end")

    def _step(self, name: str, argument: Any, place: int) -> None:
        if name in ATOMS:
            self._push(argument)
        elif name in CONSTANTS:
            self._push(CONSTANTS[name])
        elif name == "MARK":
            self.stack.append((MARK, 0))
        elif name in TUPLES:
            count = TUPLES[name]
            items = [self._pop() for _ in range(count)][::-1]
            self._push_container(tuple(v for v, _ in items), items)
        elif name in ("TUPLE", "LIST"):
            items = self._pop_to_mark()
            self._push_container((tuple if name == "TUPLE" else list)(v for v, _ in items), items)
        elif name == "EMPTY_LIST":
            self._push([], 1)
        elif name in ("APPEND", "APPENDS"):
            self._append([self._pop()] if name == "APPEND" else self._pop_to_mark())
        elif name in PUTS:
            if not 0 <= argument <= STEPS * self.most:  # chosen numbers may share one hash
                raise ValueError(f"{name} at byte {place}: a place beyond all that are filled")
            self.memo[argument] = self._top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self._top()
        elif name in GETS:
            self._get(name, self.memo[argument], place)
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"opcode {name} at byte {place}")

    def _get(self, name: str, value: Any, place: int) -> None:
        if not isinstance(value, bytes | str):
            raise ValueError(f"{name} of a {type(value).__name__} at byte {place}")
        self._push(value)

    def _push(self, value: Any, depth: int = 0) -> None:
        self.built += 1
        if self.built > self.most:
            raise ValueError(f"more than {self.most} values")
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        self.stack.append((value, depth))

    def _push_container(self, value: Any, items: list[tuple[Any, int]]) -> None:
        self._push(value, 1 + max((depth for _, depth in items), default=0))

    def _append(self, items: list[tuple[Any, int]]) -> None:
        target, depth = self._pop()
        if not isinstance(target, list):
            raise ValueError(f"APPEND to a {type(target).__name__}")
        target.extend(value for value, _ in items)
        depth = max([depth, *(1 + below for _, below in items)])
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        self.stack.append((target, depth))

    def _top(self) -> Any:
        value = self.stack[-1][0]
        if value is MARK:
            raise ValueError("a mark where a value was expected")
        return value

    def _pop(self) -> tuple[Any, int]:
        self._top()
        return self.stack.pop()

    def _pop_to_mark(self) -> list[tuple[Any, int]]:
        items = []
        while self.stack[-1][0] is not MARK:
            items.append(self.stack.pop())
        self.stack.pop()
        return items[::-1]


class _Describer(_Machine):
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
