"""The one reader of pickles: the plain values in published tile stores, with nothing executed.

It interprets the opcodes itself, and knows only those that build bytes, str, int, bool, None, tuples and lists; those
that import, call or build objects (GLOBAL, STACK_GLOBAL, INST, OBJ, NEWOBJ, REDUCE, BUILD, EXT, PERSID and all others)
are refused by name. common/torch_pickle.py adds what torch.save writes. Python's own unpickling machine is never
started.
"""

import io
import pickletools
from typing import Any

from common.errors import InputError

MAX_VALUES = 100_000  # values of one pickle; by default a published store lists 2,000 keys, and a tile has 6 values
MAX_DEPTH = 8  # of nesting
STEPS = 4  # opcodes for each value: marks and memo entries take memory too
ATOMS = {
    "BININT", "BININT1", "BININT2", "LONG1", "INT",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE",
}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS, GETS = {"BINPUT", "LONG_BINPUT", "PUT"}, {"BINGET", "LONG_BINGET", "GET"}
MARK = object()


def load_plain(data: bytes, where: str) -> Any:
    """Return the value that the pickle `data` describes: bytes, str, int, bool, None, tuples and lists only.

    `where` names it in the InputError about anything else in it, about what is cut short, too deep or too much. Only
    bytes and str are taken from the memo, so that no list can be named twice and grow by itself.
    """
    try:
        value, end = Machine(data).run()
        if end != len(data):
            raise ValueError(f"{len(data) - end} bytes after its end")
        return value
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise InputError(
            f"{where}: {reason_of(error)}: not the plain bytes, text and "
            "numbers of the published tile stores; nothing of it was executed; make the tiles again from the slides"
        ) from None


def reason_of(error: Exception) -> str:
    """Return an error's words as one short line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


class Machine:
    """The opcodes of plain values, one at a time; ValueError for every other. `most`: values that are built at most."""

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
