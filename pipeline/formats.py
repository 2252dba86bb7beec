"""Which files are slides, and which belong to one. Only the standard library: the workflow reads this each time."""

from pathlib import Path

SLIDE_SUFFIXES = frozenset(
    {".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu", ".czi"}
)
"""Single-file formats, and the file that stands for a multi-file one, that OpenSlide 4 opens."""

DICOM_SUFFIX = ".dcm"

INDEX_BYTES = 1 << 20
"""How much of a Hamamatsu index file is read: usual ones have 1 to 50 KB."""


def companions(path: Path) -> list[Path]:
    """Give the files beside a slide's own file that hold its pixels, sorted; none where the format is of one file.

    MRXS keeps them in the folder of the same name; VMS and VMU (Hamamatsu) name them in their index, as `key=value`.
    """
    match path.suffix.lower():
        case ".mrxs":
            # sorted by their parts: the order of the folder's listing differs between file systems
            files = path.with_suffix("").rglob("*")
            return sorted((file for file in files if file.is_file()), key=lambda file: file.parts)
        case ".vms" | ".vmu":
            return _named_in_index(path)
    return []


def _named_in_index(path: Path) -> list[Path]:
    with path.open("rb") as handle:
        lines = handle.read(INDEX_BYTES).decode("latin-1").splitlines()
    names = {line.partition("=")[2].strip() for line in lines}
    beside = {file.name: file for file in path.parent.iterdir()}
    return sorted(beside[name] for name in names if name in beside and beside[name] != path)
