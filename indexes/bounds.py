"""Settings that are numbers, checked in one way before an engine sees them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from ..errors import ConfigError

__all__ = ["ABOVE_ZERO", "COUNT", "SHARE", "Bounds", "check_numbers"]


@dataclass(frozen=True)
class Bounds:
    """Which numbers a setting may be.

    Attributes:
        least: the smallest.
        most: the largest, infinity for none.
        whole: whole numbers only.
        above: `least` itself is too small.
    """

    least: float = 0
    most: float = math.inf
    whole: bool = False
    above: bool = False

    def __str__(self) -> str:
        start = f"above {self.least}" if self.above else f"of at least {self.least}"
        range_ = start if self.most == math.inf else f"from {self.least} to {self.most}"
        return f"{'a whole number' if self.whole else 'a number'} {range_}"

    def read(self, value: Any) -> float | None:
        """The number, an int where it is to be whole; None where `value` is no number or not within the bounds."""
        if isinstance(value, bool) or not isinstance(value, Real | str):
            return None
        try:
            number = float(value)
        except (ValueError, OverflowError):
            return None
        inside = self.least <= number <= self.most and math.isfinite(number)
        if not inside or (self.above and number == self.least) or (self.whole and not number.is_integer()):
            return None
        if not self.whole:
            return number
        return int(value) if isinstance(value, Integral) else int(number)


COUNT = Bounds(1, 2**31 - 1, whole=True)
SHARE = Bounds(0, 1)
ABOVE_ZERO = Bounds(0, above=True)


def check_numbers(given: Mapping[str, Any], bounds: Mapping[str, Bounds], what: str) -> dict[str, Any]:
    """Check settings that are numbers, all at once.

    Args:
        given: the settings. A text that is a number counts as one: YAML reads 1e3 as text.
        bounds: name → what it may be; settings that are not here stay as they are.
        what: they are, for messages ("settings of the seismic back-end").

    Returns:
        `given` with the numbers as Python's own.

    Raises:
        ConfigError: with the name, the value and the bounds of each that is out of them.
    """
    numbers = {name: bounds[name].read(value) for name, value in given.items() if name in bounds}
    problems = [
        f"{name} is {given[name]!r}, expected {bounds[name]}" for name, value in numbers.items() if value is None
    ]
    if problems:
        raise ConfigError(f"{what} that cannot be used:", problems)
    return {**given, **numbers}
