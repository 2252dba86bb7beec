"""Read features and coordinates from an HDF5 file that somebody else wrote, and take none of its word on trust.

A dataset can state any size without a byte behind it, unpack to a thousand times its bytes, or lie in another file;
attributes can be of any type.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

KEYS = ("unit", "tile_size_um", "tile_size_px", "patch_size", "patch_size_level0", "patch_level")
"""The attributes that are read."""
MOST_PACKED = 100
"""How many times its file a dataset may be; features and coordinates pack to a half or a tenth."""
ALWAYS_BYTES = 1 << 27
"""So many it may be anyway: a chunk that a few patches leave almost empty packs to nothing."""
DAMAGE = (OSError, LookupError, RuntimeError, TypeError, ValueError, UnicodeError)
"""What h5py raises on a file with changed or missing bytes."""


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Parameters
    ----------
    features
        As stored, of any shape; None where the file has none.
    corners
        The dataset `coords`.
    own, of_coords
        Attributes of the file, and of `coords`.
    """

    features: NDArray[Any] | None
    corners: NDArray[Any]
    own: dict[str, Any]
    of_coords: dict[str, Any]


def read_hdf5(path: Path, names: Sequence[str] = ()) -> Contents:
    """Read coordinates, and features under the first of some names that is there.

    Raises
    ------
    ConfigError
        If the file cannot be read, has no `coords`, or a dataset is not one of numbers in this very file.
    """
    try:
        with h5py.File(path, "r") as file:
            found = [name for name in names if isinstance(_own(path, file, name), h5py.Dataset)]
            coords = _own(path, file, "coords")
            if not isinstance(coords, h5py.Dataset):
                raise ConfigError(
                    f"{path}: holds {', '.join(sorted(file)[:5]) or 'nothing'}, not features with coords; without"
                    " coordinates there is no heatmap, so compute the features again"
                )
            return Contents(
                _values(path, file[found[0]]) if found else None,
                _values(path, coords),
                _attributes(file),
                _attributes(coords),
            )
    except DAMAGE as error:
        raise ConfigError(f"{path}: cannot be read as HDF5 ({error}); copy the file again") from error


def _own(path: Path, file: h5py.File, name: str) -> Any:
    """Give an object of the file; None where there is none of that name."""
    outside = isinstance(file.get(name, getlink=True), h5py.ExternalLink)
    found = None if outside else file.get(name)
    # a link within the file may lead through one that leaves it
    if outside or (found is not None and found.file.filename != file.filename):
        raise ConfigError(f"{path}: its {name} are in another file; write them into one")
    return found


def _values(path: Path, dataset: h5py.Dataset) -> NDArray[Any]:
    name = dataset.name.lstrip("/")
    if dataset.is_virtual or dataset.external:
        raise ConfigError(f"{path}: its {name} are in another file; write them into one")
    if dataset.shape is None or dataset.dtype.kind not in "iuf":
        raise ConfigError(f"{path}: its {name} are no numbers; compute the features again")
    item, chunk = dataset.dtype.itemsize, math.prod(dataset.chunks or (0,))
    size = item * max(math.prod(dataset.shape), chunk)
    if size > max(ALWAYS_BYTES, MOST_PACKED * path.stat().st_size):
        raise ConfigError(
            f"{path}: its {name} state {size / 2**30:.3g} GiB, far more than the file can hold; copy the file again"
        )
    values: NDArray[Any] = dataset[...]
    return values


def _attributes(of: h5py.File | h5py.Dataset) -> dict[str, Any]:
    return {key: of.attrs[key] for key in KEYS if key in of.attrs}


def number(path: Path, attributes: Mapping[str, Any], key: str, *, least: float = 0.0) -> float:
    """Give an attribute as a number above or at `least`, finite.

    Raises
    ------
    ConfigError
        If it is none.
    """
    value = np.asarray(attributes[key])
    if value.size != 1 or value.dtype.kind not in "iuf" or not least <= float(value.flat[0]) < math.inf:
        raise ConfigError(f"{path}: its {key} is {str(attributes[key])[:40]!r}; compute the features again")
    return float(value.flat[0])


def whole(path: Path, attributes: Mapping[str, Any], key: str, *, least: int = 1) -> int:
    """Give an attribute as a whole number, at least `least`; raises as `number` does."""
    value = number(path, attributes, key, least=least)
    if value != int(value):
        raise ConfigError(f"{path}: its {key} is {value}, no whole number; compute the features again")
    return int(value)
