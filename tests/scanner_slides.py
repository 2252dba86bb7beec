"""Slides as scanners of several makers write them, small and made by us: OpenSlide knows each for its maker's.

Every writer takes level-0 pixels, RGB, shape (H, W, 3), and makes two levels, the second half as large.
"""

import io
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

MIRAX_IMAGE_PX = 128
TILE_PX = 256


def half(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give the level below: half as many pixels along both edges."""
    size = (pixels.shape[1] // 2, pixels.shape[0] // 2)
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def _jpeg(pixels: NDArray[np.uint8], **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling=0, **options)
    return stream.getvalue()


def write_mirax(
    path: Path, pixels: NDArray[np.uint8], *, origin: tuple[int, int], canvas: tuple[int, int], mpp: float = 0.5
) -> Path:
    """Write a 3DHISTECH MIRAX slide: `path` and, beside it, the folder of the same name with index and pixels.

    Parameters
    ----------
    origin, canvas
        Where the scanned pixels begin on a larger canvas, and that canvas: x, y and width, height in camera images of
        `MIRAX_IMAGE_PX`. The rest of the canvas is absent from the files, so that OpenSlide states bounds.
    """
    edge, folder, slide_id = MIRAX_IMAGE_PX, path.with_suffix(""), "0123456789ABCDEF0123456789ABCDEF"
    folder.mkdir(parents=True, exist_ok=True)
    data = bytearray(b"0" * 64)
    index = bytearray(f"01.02{slide_id}".encode())
    root = len(index)
    index += bytes(8)
    zoom_table = len(index)
    index += bytes(8)
    struct.pack_into("<i", index, root, zoom_table)
    level = pixels
    for zoom in range(2):
        step = 2**zoom
        entries = []
        for row in range(level.shape[0] // edge):
            for column in range(level.shape[1] // edge):
                image = _jpeg(level[row * edge : (row + 1) * edge, column * edge : (column + 1) * edge])
                number = (origin[1] + row * step) * canvas[0] + origin[0] + column * step
                entries.append(struct.pack("<4i", number, len(data), len(image), 0))
                data += image
        struct.pack_into("<i", index, zoom_table + 4 * zoom, len(index))
        index += struct.pack("<2i", 0, len(index) + 8) + struct.pack("<2i", len(entries), 0) + b"".join(entries)
        level = half(level)
    sections = "".join(
        f"[ZOOM_{zoom}]\nIMAGE_CONCAT_FACTOR={int(zoom > 0)}\nOVERLAP_X=0\nOVERLAP_Y=0\nIMAGE_FORMAT=JPEG\n"
        f"MICROMETER_PER_PIXEL_X={mpp * 2**zoom}\nMICROMETER_PER_PIXEL_Y={mpp * 2**zoom}\n"
        f"IMAGE_FILL_COLOR_BGR=16777215\nDIGITIZER_WIDTH={edge}\nDIGITIZER_HEIGHT={edge}\n"
        for zoom in range(2)
    )
    (folder / "Slidedat.ini").write_text(
        f"[GENERAL]\nSLIDE_VERSION=01.02\nSLIDE_ID={slide_id}\nOBJECTIVE_MAGNIFICATION=20\n"
        f"IMAGENUMBER_X={canvas[0]}\nIMAGENUMBER_Y={canvas[1]}\nCameraImageDivisionsPerSide=1\n"
        "[HIERARCHICAL]\nHIER_COUNT=1\nNONHIER_COUNT=0\nINDEXFILE=Index.dat\nHIER_0_NAME=Slide zoom level\n"
        "HIER_0_COUNT=2\nHIER_0_VAL_0_SECTION=ZOOM_0\nHIER_0_VAL_1_SECTION=ZOOM_1\n"
        f"[DATAFILE]\nFILE_COUNT=1\nFILE_0=Data0000.dat\n{sections}"
    )
    (folder / "Index.dat").write_bytes(bytes(index))
    (folder / "Data0000.dat").write_bytes(bytes(data))
    path.write_bytes(_jpeg(half(pixels)))  # what an image viewer shows of the .mrxs itself
    return path


def write_vms(path: Path, pixels: NDArray[np.uint8], *, mpp: float = 0.5) -> Path:
    """Write a Hamamatsu VMS slide: an index beside two JPEGs with restart markers, the slide and its map."""
    height, width = pixels.shape[:2]
    names = {"ImageFile": f"{path.stem}.jpg", "MapFile": f"{path.stem}_map.jpg"}
    for name, level in zip(names.values(), (pixels, half(pixels)), strict=True):
        (path.parent / name).write_bytes(_jpeg(level, restart_marker_blocks=8))
    files = "\n".join(f"{key}={name}" for key, name in names.items())
    path.write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nNoJpegColumns=1\nNoJpegRows=1\nSourceLens=20\n"
        f"PhysicalWidth={round(width * mpp * 1000)}\nPhysicalHeight={round(height * mpp * 1000)}\n{files}\n"
    )
    return path


def _write_levels(
    path: Path, pixels: NDArray[np.uint8], options: tuple[dict[str, Any], dict[str, Any]], **shared: Any
) -> Path:
    tiled: dict[str, Any] = {
        "tile": (TILE_PX, TILE_PX),
        "photometric": "rgb",
        "compression": "jpeg",
        "compressionargs": {"level": 95},
        "metadata": None,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for level, own in zip((pixels, half(pixels)), options, strict=True):
            writer.write(level, **(tiled | shared | own))
    return path


def write_bif(path: Path, pixels: NDArray[np.uint8], *, mpp: float = 0.5) -> Path:
    """Write a Ventana BIF slide of one area, its tiles joined without overlap; edges are multiples of `TILE_PX`."""
    rows: int = pixels.shape[0] // TILE_PX
    columns: int = pixels.shape[1] // TILE_PX

    def number(row: int, column: int) -> int:
        """Give the number of a tile as the scanner moves: rows from the bottom, every second one from right to left."""
        up = rows - 1 - row
        return up * columns + (columns - 1 - column if up % 2 else column) + 1

    joint = (
        '<TileJointInfo FlagJoined="1" Confidence="100" Direction="{}" Tile1="{}" Tile2="{}"'
        ' OverlapX="0" OverlapY="0"/>'
    )
    joints = [
        joint.format("RIGHT", number(row, column), number(row, column + 1))
        for row in range(rows)
        for column in range(columns - 1)
    ]
    joints += [
        joint.format("UP", number(row, column), number(row - 1, column))
        for row in range(1, rows)
        for column in range(columns)
    ]
    stitched = (
        f'<EncodeInfo Ver="2"><SlideStitchInfo><ImageInfo AOIScanned="1" AOIIndex="0" Width="{TILE_PX}" '
        f'Height="{TILE_PX}" NumRows="{rows}" NumCols="{columns}" Pos-X="0" Pos-Y="0">{"".join(joints)}</ImageInfo>'
        '</SlideStitchInfo><AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )
    scan = f'<?xml version="1.0"?><Metadata><iScan Z-layers="1" ScanRes="{mpp}" Magnification="20"/></Metadata>'

    def packet(text: str) -> list[tuple[int, str, int, bytes, bool]]:
        return [(700, "B", len(text), text.encode(), True)]

    label = np.full((64, 64, 3), 230, np.uint8)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(label, description="Label Image", photometric="rgb", metadata=None, extratags=packet(scan))
        for level, image in enumerate((pixels, half(pixels))):
            writer.write(
                image,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 95},
                metadata=None,
                description=f"level={level} mag={20 / 2**level:g} quality=95",
                extratags=packet(stitched) if level == 0 else (),
            )
    return path


def write_philips(path: Path, pixels: NDArray[np.uint8], *, mpp: float = 0.5) -> Path:
    """Write a Philips TIFF, its levels' pixel spacings in its XML."""

    def spacing(level: int) -> str:
        value = f"{mpp * 2**level / 1000:.7f}"
        return f'<Attribute Name="DICOM_PIXEL_SPACING">"{value}" "{value}"</Attribute>'

    levels = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{spacing(level)}</DataObject>' for level in (0, 1)
    )
    description = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject ObjectType="DPScannedImage">'
        f'<Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>{spacing(0)}'
        f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{levels}</Array></Attribute>'
        "</DataObject></Array></Attribute></DataObject>"
    )
    return _write_levels(path, pixels, ({"description": description}, {"subfiletype": 1}), software="Philips DP v1.0")


def write_trestle(path: Path, pixels: NDArray[np.uint8], *, mpp: float = 0.5) -> Path:
    """Write a Trestle slide; its resolution tags hold um per pixel, as that maker's do."""
    options: tuple[dict[str, Any], dict[str, Any]] = ({"description": "Objective Power=20;OverlapsXY= 0 0 0 0"}, {})
    return _write_levels(path, pixels, options, software="MedScan", resolution=(mpp, mpp), resolutionunit="NONE")
