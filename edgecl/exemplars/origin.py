"""Where a stored sample came from: the file, stream or camera, the position in it, and when it was taught."""
from __future__ import annotations

import unicodedata
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, NamedTuple

from edgecl.samples import UNITS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgecl.samples import Place

MOST_NAME = 255                                 # bytes of a name in UTF-8
UNPRINTABLE = "Cc", "Cs", "Zl", "Zp"            # Unicode categories: control characters, surrogates, line separators
TICK_BITS = 32                                  # of a position that each sample keeps; its origin has the others
FARTHEST = 2 ** 53                              # position: beyond it, floats leave out whole numbers


class Origin(NamedTuple):
    """What samples from one source have in common. name: see `stored_name`; unit: of positions, see
    `edgecl.samples.UNITS`; taught: UTC, whole seconds since 1970; high: the bits of positions above TICK_BITS."""

    name: str = ""
    unit: str = ""
    taught: int = 0
    high: int = 0

    def position(self, tick: int) -> int | float | None:
        """The position with these lower bits, in the origin's unit; None if it has no unit."""
        if not self.unit:
            return None
        steps = UNITS[self.unit].steps if self.unit in UNITS else 1
        whole = (self.high << TICK_BITS) + tick
        return whole if steps == 1 else whole / steps

    @property
    def bytes(self) -> int:
        """Bytes of it in a record, which all samples there that have it share; those of NOWHERE are not counted."""
        if self == NOWHERE:
            return 0
        return len(f'[,"{self.unit}",{self.taught},{self.high}],') + len(encode_basestring(self.name).encode())


NOWHERE = Origin()      # of samples whose source is not known


def origins_of(places: Iterable[Place], taught: int) -> list[tuple[Origin, int]]:
    """The origin of each sample, one object for all that have it, and the lower bits of its position. taught: see
    `Origin`."""
    found, names, known = list[tuple[Origin, int]](), dict[str, str](), {NOWHERE: NOWHERE}
    for name, at, unit in places:
        if name not in names:
            names[name] = stored_name(name)
        ticks = 0
        if at is not None and unit in UNITS and -FARTHEST < at < FARTHEST:
            ticks = round(at * UNITS[unit].steps)
        else:
            unit = ""
        origin = Origin(names[name], unit, taught, ticks >> TICK_BITS) if name or unit else NOWHERE
        found.append((known.setdefault(origin, origin), ticks & (2 ** TICK_BITS - 1)))
    return found


def stored_name(name: str) -> str:
    r"""A name as it is stored: at most MOST_NAME bytes of UTF-8, of which the end is kept. What can't be printed, such
    as the bytes of a file name that is not UTF-8, is written like \xff."""
    text = name if name.isprintable() else "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in UNPRINTABLE else c for c in _decoded(name))
    return text.encode()[-MOST_NAME:].decode("utf-8", "ignore")


def _decoded(name: str) -> str:
    """A name in which bytes that are not UTF-8 are written out, if `os.fsdecode` has made surrogates of them."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:      # other surrogates
        return name
