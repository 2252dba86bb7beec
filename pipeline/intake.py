"""Say in plain words why a file is no slide that can be used."""

import re
from collections.abc import Iterable
from pathlib import Path

import tifffile

from pipeline.errors import SlideError

COPY_AGAIN = "copy or download it again and compare its size with the original"
EXPORT_AGAIN = (
    "export it again from the scanner's software as an 8-bit RGB pyramid (SVS, NDPI, MRXS, DICOM or tiled TIFF)"
)
LARGEST_TILE_PX = 8192 * 8192
"""Pixels of a tile, 200 MB unpacked; scanners write tiles of 256 to 1024 px."""
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
KNOWN_MAGIC: dict[bytes, str] = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a plain JPEG image",
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "an empty zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file",
}
"""First bytes of files that end up in a slide folder by mistake."""

UNSPECIFIED, UNSIGNED = 0, 1
"""Values of TIFF's tags ExtraSamples and SampleFormat."""

COMPRESSIONS = {
    1: "none",
    5: "LZW",
    7: "JPEG",
    8: "deflate",
    32946: "deflate",
    **dict.fromkeys((33003, 33004, 33005, 34712), "JPEG 2000"),
    **dict.fromkeys((22610, 50002), "JPEG XR"),
}
"""Values of TIFF's tag Compression; 33003 and 33005 are Aperio's."""

DICOM_HEAD = 64 * 1024
"""How much of a DICOM file is searched; the tags wanted come long before the pixels."""

SERIES_UID = re.compile(rb"\x20\x00\x0e\x00UI..([0-9.]+)", re.DOTALL)
"""Tag (0020,000E) in explicit little endian, which all whole-slide transfer syntaxes use."""


def first_bytes(path: Path) -> bytes:
    """Read the first 512 bytes of a slide file.

    Raises
    ------
    SlideError
        If the file is missing, empty or cannot be read, or is a pipe or a device.
    """
    if path.exists() and not path.is_file():
        raise SlideError("it is no file but a pipe or a device", remedy="put the slide itself there, or remove it")
    try:
        with path.open("rb") as handle:
            head = handle.read(512)
    except FileNotFoundError as error:
        raise SlideError("there is no such file", remedy="put it back, or take it out of the labels") from error
    except OSError as error:
        raise SlideError(
            f"the file cannot be read ({error.strerror or error})",
            remedy="check its permissions and that the disk is there",
        ) from error
    if not head:
        raise SlideError("the file is empty (0 bytes)", remedy=COPY_AGAIN)
    return head


def explain_refusal(path: Path, message: str) -> SlideError:
    """Turn OpenSlide's refusal to open a file into a sentence a pathologist can act on.

    Parameters
    ----------
    path
        The file that OpenSlide refused.
    message
        OpenSlide's own message; "Unsupported or missing image file" says nothing and is left out.
    """
    head = first_bytes(path)
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return SlideError("the file is a web page, not a slide: its download failed", remedy="download it again")
    if path.suffix.lower() in {".vms", ".vmu"}:
        return SlideError(
            f"image files that it names are missing or damaged ({_without_path(message, path)})",
            remedy="copy all files of the slide into its folder again",
        )
    if _is_text(head):
        return SlideError("the file is text, not a slide", remedy="replace it by the slide, or remove it")
    for magic, name in KNOWN_MAGIC.items():
        if head.startswith(magic):
            return SlideError(f"the file is {name}, not a whole-slide image", remedy=EXPORT_AGAIN)
    if path.suffix.lower() == ".mrxs" and not path.with_suffix("").is_dir():
        return SlideError(
            f"its folder '{path.stem}' with the pixels is missing", remedy="copy the folder beside the .mrxs file"
        )
    detail = "" if message.startswith("Unsupported") else f" ({_without_path(message, path)})"
    if "Unsupported transfer syntax" in message:
        return SlideError(f"it is compressed in a way OpenSlide cannot read{detail}", remedy=EXPORT_AGAIN)
    if head.startswith(TIFF_MAGIC) or "Short read" in message:
        return SlideError(f"the file is damaged or cut short{detail}", remedy=COPY_AGAIN)
    return SlideError(f"OpenSlide knows no such slide format{detail}", remedy=f"{COPY_AGAIN}, or {EXPORT_AGAIN}")


def check_pixel_layout(path: Path) -> None:
    """Refuse TIFF slides whose pixels OpenSlide would return wrong without an error, or unpack without end.

    OpenSlide 4.0 flips pixels inside each tile where the Orientation tag is not 1, and cuts 16-bit samples to 8 bits.

    Parameters
    ----------
    path
        A file that OpenSlide opened; other formats than TIFF pass.

    Raises
    ------
    SlideError
        If the first image has huge tiles, is rotated or mirrored by its Orientation tag, has not 8 unsigned bits a
        sample, or has a second grey channel, or a fourth of no stated meaning, which would be taken for transparency.
    """
    if not first_bytes(path).startswith(TIFF_MAGIC):
        return
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            orientation = page.tags.valueof("Orientation", default=1)
            bits, sample_format = page.bitspersample, page.sampleformat
            grey_and_more = page.samplesperpixel == 2
            unknown = page.samplesperpixel > 3 and UNSPECIFIED in page.extrasamples
            tile = (int(page.tilewidth), int(page.tilelength)) if page.is_tiled else (0, 0)
    except (tifffile.TiffFileError, ValueError, KeyError, IndexError) as error:
        raise SlideError(f"its TIFF header is damaged ({error})", remedy=COPY_AGAIN) from error
    if tile[0] * tile[1] > LARGEST_TILE_PX:
        # each region that is read unpacks whole tiles: a file of 0.4 MB kept a job busy for minutes
        raise SlideError(f"its tiles have {tile[0]} x {tile[1]} px, too large to be read", remedy=EXPORT_AGAIN)
    # 0 is not a legal value and is read as 1 by libtiff
    if int(orientation) not in (0, 1):
        raise SlideError(
            f"its TIFF Orientation tag is {int(orientation)} (rotated or mirrored), which OpenSlide does not apply",
            remedy="export it again upright (Orientation 1)",
        )
    if bits != 8:
        raise SlideError(f"it has {bits} bits a colour, not 8", remedy=EXPORT_AGAIN)
    if sample_format not in (None, UNSIGNED):
        raise SlideError("its samples are signed or floating-point numbers", remedy=EXPORT_AGAIN)
    if grey_and_more:
        # libtiff shifts the rows of tiles that the image's edge cuts
        raise SlideError("it is grey with a second channel, which OpenSlide reads wrong", remedy=EXPORT_AGAIN)
    if unknown:
        raise SlideError("it has a fourth channel of no stated meaning", remedy=EXPORT_AGAIN)


def check_dicom_series(files: Iterable[Path]) -> None:
    """Refuse a DICOM folder that holds the pixels of two slides: OpenSlide would silently read one of them.

    Label and overview images may be series of their own; what counts is files whose image type is a volume.

    Raises
    ------
    SlideError
        If there are two series.
    """
    found = set()
    for file in files:
        with file.open("rb") as handle:
            head = handle.read(DICOM_HEAD)
        series = re.search(SERIES_UID, head)
        if series is not None and b"VOLUME" in head:
            found.add(series[1].rstrip(b"\0 "))
    if len(found) > 1:
        raise SlideError(
            f"the folder holds {len(found)} DICOM series", remedy="put each series into a folder of its own"
        )


def compression_of(path: Path) -> str:
    """Name how the first image of a TIFF slide is compressed, as "JPEG" or "JPEG 2000"; empty for other formats."""
    if path.is_dir() or not first_bytes(path).startswith(TIFF_MAGIC):
        return ""
    try:
        with tifffile.TiffFile(path) as tiff:
            tag = tiff.pages.first.tags.valueof("Compression", default=1)
    except (tifffile.TiffFileError, ValueError, KeyError, IndexError) as error:
        raise SlideError(f"its TIFF header is damaged ({error})", remedy=COPY_AGAIN) from error
    return COMPRESSIONS.get(int(tag), f"TIFF compression {int(tag)}")


def _is_text(head: bytes) -> bool:
    if any(byte < 32 and byte not in b"\t\n\r\f" for byte in head):
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3  # a character cut by the end of what was read
    return True


def _without_path(message: str, path: Path) -> str:
    for found in (f"Reading {path}: ", str(path), str(path.resolve())):
        message = message.replace(found, "" if found.startswith("Reading") else path.name)
    return message.rstrip(".")
