"""The grouping of a sweep's runs by their factors in MLflow's UI, with a distinct color for each group.

The UI chooses the color of a group by a hash of the keys that it groups by and their values, and has no setting for
it. Equivalent groupings, which differ in the order of the keys and in whether a key is read as a parameter or as a tag,
have different colors: one with clearly different colors is chosen.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

# MLflow 3.17, src/common/color-palette.ts.
COLORS = (
    "#a6630c", "#c83243", "#b45091", "#8a63bf", "#434a93", "#137dae", "#04867d", "#308613", "#facb66", "#1f272d",
    "#445461", "#5f7281", "#8396a5", "#93320b", "#be501e", "#de7921", "#f2be88", "#115026", "#277c43", "#3ba65e",
    "#8ddda8", "#9e102c", "#c82d4c", "#e65b77", "#f792a6", "#0e538b", "#2272b4", "#4299e0", "#8acaff",
)  # fmt: skip
MODES = ("param", "tag")
MAX_TRIED = 300  # groupings
CLEAR = 80.0  # distance of colors in RGB, 0 to 441, that is enough
Key = tuple[str, str]  # mode, name of a parameter or tag


def choose_grouping(configurations: Sequence[Mapping[str, str]], constants: Mapping[str, str]) -> list[Key]:
    """The keys to group by: the first grouping with clearly different colors, else that with the most different ones.

    Args:
        configurations: {key: level} of each group, all with the same keys.
        constants: keys with one value in all runs, which may be added.
    """
    groups = [{**constants, **levels} for levels in configurations]
    best, widest = [], -1.0
    for keys in itertools.islice(list_groupings(list(configurations[0]), list(constants)), MAX_TRIED):
        distance = measure_distance([find_color(keys, levels) for levels in groups])
        if distance > widest:
            best, widest = keys, distance
        if widest >= CLEAR:
            break
    return best


def list_groupings(keys: Sequence[str], constants: Sequence[str]) -> Iterator[list[Key]]:
    """Groupings by all of `keys`, first those without constants and by parameters."""
    for count in range(len(constants) + 1):
        for added in itertools.permutations(constants, count):
            for modes in itertools.product(MODES, repeat=len(keys) + count):
                for order in itertools.permutations(keys):
                    if order or added:
                        yield list(zip(modes, (*order, *added), strict=True))


def find_color(keys: Sequence[Key], levels: Mapping[str, str]) -> str:
    """The color that the UI gives a group."""
    low = high = 0
    for letter in ",".join(f"{mode}.{key}.{levels[key]}" for mode, key in keys):
        low = (low + ord(letter)) % 255
        high = (high + low) % 255
    return COLORS[(low | high << 8) % len(COLORS)]


def measure_distance(colors: Sequence[str]) -> float:
    """Smallest distance between two of the first colors in RGB; where there are many groups, colors repeat."""
    points = [tuple(int(color[start : start + 2], 16) for start in (1, 3, 5)) for color in colors]
    pairs = itertools.combinations(points[: len(COLORS) // 2], 2)
    return min((sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) ** 0.5 for pair in pairs), default=math.inf)
