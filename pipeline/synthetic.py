"""Draw a synthetic H&E slide: glass, stroma, glands, lymphoid patches, vessels and, on request, a tumour.

Everything is drawn on two uint8 planes, how much haematoxylin and how much eosin lies on each pixel; one table turns a
pair of amounts into a colour by the law of Beer and Lambert. That keeps the colours those of a stain, and a slide of
ten megapixels at about a second. Large shapes are fields on a grid of `GRID_PX` pixels, enlarged; nuclei are stamps.

Sizes are those of tissue at `MPP` um per pixel. Pictures are uint8 RGB [H, W, 3]; points are (x, y) in level-0 pixels.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from pipeline.opencv import make_repeatable
from pipeline.synthetic_canvas import GRID_PX, Canvas, Zone, closed_curve, eighths
from pipeline.synthetic_noise import TEXTURE_PX, enlarge, smooth_noise, texture
from pipeline.synthetic_nuclei import NucleusKind
from pipeline.synthetic_stain import Stain

MPP = 0.5
"""Resolution that the sizes in this module are meant for, um per pixel (an objective of 20)."""

GLAND_POINTS = 96
"""Corners of the polygon that a gland's outline is."""


@dataclass(frozen=True)
class Drawing:
    """A drawn slide and the truth about it.

    Parameters
    ----------
    pixels
        uint8 RGB, shape (H, W, 3).
    outlines
        Tumour polygons, each int32 (M, 2), columns x, y, level-0 px, not closed; none without a tumour.
    tissue_px, tumour_px
        Area of the tissue, and of the tissue inside the outlines, level-0 px.
    """

    pixels: NDArray[np.uint8]
    outlines: list[NDArray[np.int32]]
    tissue_px: int
    tumour_px: int

    @property
    def tumour_share(self) -> float:
        """Share of the tissue that is tumour, in [0, 1]."""
        return self.tumour_px / self.tissue_px


def draw_slide(
    seed: int | list[int],
    *,
    width_px: int,
    height_px: int,
    tumour: bool,
    stain: Stain | None = None,
    tumour_share: tuple[float, float] = (0.16, 0.25),
) -> Drawing:
    """Draw a slide as it would look at `MPP` um per pixel.

    Parameters
    ----------
    seed
        Of everything random in the drawing; the same seed and sizes give the same pixels.
    width_px, height_px
        Size; at least 512 px a side.
    tumour
        Whether there is a tumour, and so an outline.
    stain
        The stain's colours; a usual one by default.
    tumour_share
        Bounds of the share of the tissue that the tumour is meant to cover; what it came to is in the result.

    Raises
    ------
    ValueError
        If a side is below 512 px, on which no tissue of this scale has room.
    """
    make_repeatable()
    if min(width_px, height_px) < 512:
        raise ValueError(f"a slide of {width_px} x {height_px} px has no room for tissue; use at least 512 px a side")
    rng = default_rng(seed)
    canvas = _stroma(rng, width_px=width_px, height_px=height_px)
    tissue = _tissue_mask(canvas)
    if tumour:
        canvas.outlines = _tumour_outlines(canvas, share=float(rng.uniform(*tumour_share)))
    inside = np.zeros(canvas.shape, np.uint8)
    cv2.fillPoly(inside, canvas.outlines, 255)
    canvas.zones[cv2.resize(inside, canvas.zones.shape[::-1], interpolation=cv2.INTER_AREA) > 127] = Zone.TUMOUR
    _draw_lymphoid(canvas)
    _draw_vessels(canvas)
    _draw_glands(canvas)
    if tumour:
        _draw_tumour(canvas, inside)
    _scatter_stromal_nuclei(canvas)
    return Drawing(
        pixels=_develop(canvas, tissue, stain or Stain()),
        outlines=canvas.outlines,
        tissue_px=int(cv2.countNonZero(tissue)),
        tumour_px=int(cv2.countNonZero(cv2.bitwise_and(tissue, inside))),
    )


def _tissue_pieces(rng: Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Give one or two pieces of tissue: about the distance to the outline in px, positive inside, a value a cell."""
    height, width = shape[0] * GRID_PX, shape[1] * GRID_PX
    ys, xs = (axis.astype(np.float32) * GRID_PX for axis in np.mgrid[0 : shape[0], 0 : shape[1]])
    pieces = [(0.5, 0.42)] if rng.random() < 0.6 else [(0.27, 0.205), (0.735, 0.195)]
    inside = np.full(shape, -1e4, np.float32)
    for middle, half in pieces:
        across = (xs - width * (middle + rng.uniform(-0.01, 0.01))) / (width * half)
        down = (ys - height * (0.5 + rng.uniform(-0.03, 0.03))) / (height * rng.uniform(0.37, 0.43))
        angle = np.arctan2(down, across)
        edge = 1.0 + sum(
            rng.normal(0, 0.16 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5, 7, 9)
        )
        inside = np.maximum(inside, (edge - np.hypot(across, down)) * width * half)
    inside += 24.0 * smooth_noise(rng, shape, 24) + 9.0 * smooth_noise(rng, shape, 9)
    border = np.minimum.reduce([xs, ys, width - xs, height - ys]) - max(40.0, 0.03 * min(width, height))
    # along the zero line of one noise, where a second one is high; the latter also tapers the ends
    tear = np.abs(smooth_noise(rng, shape, 55)) * 240.0 - 16.0
    tear += 60.0 * np.maximum(1.3 - smooth_noise(rng, shape, 60), 0.0)
    return np.asarray(np.minimum.reduce([inside, border, tear]), np.float32)


def _stroma(rng: Generator, *, width_px: int, height_px: int) -> Canvas:
    """Start a canvas: wavy fibres over the whole plane, looser or denser, and where the tissue's pieces lie."""
    grid = (-(-height_px // GRID_PX), -(-width_px // GRID_PX))
    ys, xs = (axis.astype(np.float32) * GRID_PX for axis in np.mgrid[0 : grid[0], 0 : grid[1]])
    turn = rng.uniform(0, np.pi)
    along = np.cos(turn) * xs + np.sin(turn) * ys + _bend(rng, grid)
    across = -np.sin(turn) * xs + np.cos(turn) * ys + _bend(rng, grid)
    slope_y, slope_x = np.gradient(across)  # a fibre is a line of equal `across`
    dense = np.clip(0.5 + 0.7 * smooth_noise(rng, grid, 60) + 0.25 * smooth_noise(rng, grid, 12), 0.0, 1.0)
    haematoxylin, eosin = _fibres(along, across, dense, shape=(height_px, width_px))
    pieces = _tissue_pieces(rng, grid)
    return Canvas(
        rng=rng,
        haematoxylin=haematoxylin,
        eosin=eosin,
        zones=np.where(pieces > 0, Zone.STROMA, Zone.GLASS).astype(np.uint8),
        pieces=pieces,
        dense=dense.astype(np.float32),
        fibre_angle=np.arctan2(-slope_x, slope_y).astype(np.float32),
    )


def _bend(rng: Generator, grid: tuple[int, int]) -> NDArray[np.float32]:
    """Give how far fibres are displaced, px: in wide waves with smaller ones on them."""
    wide, narrow, fine = (smooth_noise(rng, grid, cell) for cell in (50, 17, 5))
    return np.asarray(90.0 * wide + 28.0 * narrow + 5.0 * fine, np.float32)


def _fibres(
    along: NDArray[np.float32], across: NDArray[np.float32], dense: NDArray[np.float32], *, shape: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Lay the fibre texture along its grid of coordinates, px: planes of haematoxylin and eosin of `shape`."""
    columns, rows = enlarge(along.astype(np.float32), shape), enlarge(across.astype(np.float32), shape)
    fibre = cv2.remap(texture(26.0, 1.7, 11), columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    amount = np.arange(256.0)
    cleft = np.clip((amount - 58.0) / 26.0, 0.0, 1.0)  # the thinnest twentieth of the texture is a gap between fibres
    eosin = cv2.LUT(fibre, (cleft * (30.0 + 0.80 * amount)).clip(0, 182).astype(np.uint8))
    haematoxylin = cv2.LUT(fibre, (cleft * 20.0).astype(np.uint8))
    share = enlarge((128.0 * (0.66 + 0.34 * dense)).astype(np.float32), shape).astype(np.uint8)
    return np.asarray(haematoxylin, np.uint8), np.asarray(cv2.multiply(eosin, share, scale=1 / 128), np.uint8)


def _tissue_mask(canvas: Canvas) -> NDArray[np.uint8]:
    """Give the tissue with its ragged edge: uint8 [H, W], 255 inside."""
    distance_px = enlarge(canvas.pieces, canvas.shape)
    ragged_px = 7.0 * smooth_noise(canvas.rng, canvas.shape, 26) + 3.0 * smooth_noise(canvas.rng, canvas.shape, 7)
    # without a limit the noise would now and then put a crumb of tissue far out on the glass
    tissue = (distance_px + ragged_px > 0) & (distance_px > -20)
    return np.where(tissue, np.uint8(255), np.uint8(0))


def _tumour_outlines(canvas: Canvas, share: float) -> list[NDArray[np.int32]]:
    """Choose a blob of about `share` of the tissue, well inside it: polygons of int32 (M, 2), x, y."""
    rng, pieces = canvas.rng, canvas.pieces
    rows, columns = np.nonzero(pieces > 0.45 * pieces.max())
    centre = int(rng.integers(len(rows)))
    ys, xs = np.mgrid[0 : pieces.shape[0], 0 : pieces.shape[1]]
    distance_px = np.hypot(ys - rows[centre], xs - columns[centre]) * GRID_PX
    reach_px = np.sqrt(share * np.count_nonzero(pieces > 0) / np.pi) * GRID_PX
    waves = smooth_noise(rng, pieces.shape, max(4, int(reach_px / GRID_PX * 0.45)))
    ripple = smooth_noise(rng, pieces.shape, max(3, int(reach_px / GRID_PX * 0.16)))
    near = -distance_px + reach_px * (0.28 * waves + 0.09 * ripple)
    room = pieces - 30.0
    wanted = min(share * np.count_nonzero(pieces > 0), 0.9 * np.count_nonzero(room > 0))
    threshold = np.partition(near[room > 0], -int(wanted))[-int(wanted)]
    blob = np.minimum(near - threshold, room).astype(np.float32)
    fine = enlarge(cv2.GaussianBlur(blob, (0, 0), 1.5), (canvas.shape[0] // 2, canvas.shape[1] // 2))
    contours, _ = cv2.findContours((fine > 0).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    smallest_px = 0.12 * max(cv2.contourArea(contour) for contour in contours)
    kept = [cv2.approxPolyDP(contour, 0.7, True) for contour in contours if cv2.contourArea(contour) >= smallest_px]
    return [np.ascontiguousarray(contour[:, 0] * 2, np.int32) for contour in kept]


def _draw_lymphoid(canvas: Canvas) -> None:
    """Draw dense patches of lymphocytes: dark like a tumour at low power, small and even at high power."""
    rng, grid = canvas.rng, canvas.zones.shape
    ys, xs = np.mgrid[0 : grid[0], 0 : grid[1]].astype(np.float32)
    rows, columns = np.nonzero((canvas.pieces > 60) & (canvas.zones == Zone.STROMA))
    if not len(rows):
        return
    patch = np.full(grid, -1e4, np.float32)
    wobble = smooth_noise(rng, grid, 9)
    density = len(rows) * GRID_PX**2 / 1.0e6
    for _ in range(1 + rng.poisson(0.8 * density)):
        centre = int(rng.integers(len(rows)))
        radius = rng.uniform(9.0, 25.0)
        distance = np.hypot((ys - rows[centre]) * rng.uniform(0.7, 1.4), xs - columns[centre])
        patch = np.maximum(patch, (radius - distance) + 0.22 * radius * wobble)
    patch[(canvas.zones != Zone.STROMA) | (canvas.pieces < 20)] = -1e4
    canvas.zones[patch > 0] = Zone.LYMPHOID
    haze = np.clip(enlarge(np.clip(patch, -6, 6), canvas.shape) / 6.0, 0, 1)
    canvas.haematoxylin[:] = np.maximum(canvas.haematoxylin, (42.0 * haze).astype(np.uint8))
    canvas.eosin[:] = (canvas.eosin * (1.0 - 0.5 * haze)).astype(np.uint8)
    points = canvas.scatter(10.0, np.where(patch > 0, 0.93, np.where(patch > -5, 0.25, 0.0)))
    canvas.stamp("lymphocyte", points, rng.uniform(0, np.pi, len(points)).astype(np.float32))


def _draw_vessels(canvas: Canvas) -> None:
    """Draw small vessels: a muscular wall, flat endothelial nuclei, red cells in the lumen."""
    rng = canvas.rng
    spots = canvas.scatter(420.0, (canvas.zones == Zone.STROMA) & (canvas.pieces > 50))
    for centre in spots[rng.random(len(spots)) < 0.6]:
        half = rng.uniform(13, 38) * np.asarray([1.0, rng.uniform(0.5, 0.85)])
        angle = float(canvas.sample(canvas.fibre_angle, centre[None])[0])
        ring = closed_curve(rng, centre, half, angle, points=40, wobble=0.05)
        wall = centre + (ring - centre) * (1.0 + rng.uniform(7, 12) / half.max())
        canvas.fill(wall, eosin=118, haematoxylin=20)
        canvas.fill(ring, eosin=14, haematoxylin=3)
        if rng.random() < 0.8:
            cells = centre + (ring - centre)[rng.integers(0, 40, 26)] * np.sqrt(rng.random((26, 1))) * 0.82
            for cell in cells:
                cv2.circle(canvas.eosin, eighths(cell), 30, int(rng.integers(236, 254)), -1, cv2.LINE_AA, 3)
        lining = np.arange(0, len(ring), rng.integers(5, 8))
        along = (np.roll(ring, -1, axis=0) - ring)[lining]
        around = centre + (ring - centre)[lining] * (1.0 + 2.5 / half.max())
        canvas.stamp("spindle", around.astype(np.float32), np.arctan2(along[:, 1], along[:, 0]))
        canvas.claim(wall, Zone.VESSEL)


def _draw_glands(canvas: Canvas) -> None:
    """Draw glands on the parts of the tissue that have them: a ring of nuclei around mucin and a pale lumen."""
    rng = canvas.rng
    spacing_px = rng.uniform(150.0, 185.0)
    mucosa = (canvas.dense < 0.8) & (canvas.pieces > 0.45 * spacing_px)
    centres = canvas.scatter(spacing_px, mucosa * np.float32(0.97), jitter=0.12)
    tilt = smooth_noise(rng, canvas.zones.shape, 60) * 1.2
    for centre in centres:
        stretch = rng.uniform(1.0, 1.35)
        half = spacing_px * rng.uniform(0.33, 0.42) * np.asarray([stretch, 1.0 / stretch**0.5])
        angle = float(canvas.sample(tilt, centre[None])[0])
        ring = closed_curve(rng, centre, half, angle, points=GLAND_POINTS, wobble=0.045)
        wall = (centre + (ring - centre) * 1.07).astype(np.float32)
        if np.all(canvas.sample(canvas.zones, wall) == Zone.STROMA):
            _draw_gland(canvas, centre, ring)
            canvas.claim(wall, Zone.GLAND)


def _draw_gland(canvas: Canvas, centre: NDArray[np.float32], ring: NDArray[np.float32]) -> None:
    """Draw one gland whose basement membrane is `ring`, float32 (GLAND_POINTS, 2), x, y."""
    rng, spokes = canvas.rng, ring - centre
    radius = float(np.median(np.hypot(*spokes.T)))
    canvas.fill(centre + spokes * (1.0 + 5.0 / radius), eosin=52, haematoxylin=12)
    canvas.fill(centre + spokes * (1.0 + 1.5 / radius), eosin=120, haematoxylin=28)
    canvas.fill(ring, eosin=78, haematoxylin=46)
    base = 1.0 - 17.0 / radius
    goblet = rng.random() < 0.7
    opening = rng.uniform(0.16, 0.30) if goblet else rng.uniform(0.30, 0.48)
    cells = max(10, int(2.0 * np.pi * radius / 15.0))
    spoke = spokes[_around(rng, cells, jitter=0.5)]
    if goblet:
        depth = (base + opening) / 2
        for one in spoke[rng.random(cells) < 0.85]:
            vacuole = (int(4.0 * (base - opening) * radius), int(8.0 * rng.uniform(5.5, 7.5)))
            degrees = float(np.degrees(np.arctan2(one[1], one[0])))
            middle = eighths(centre + one * depth * rng.uniform(0.96, 1.04))
            for plane, amount in ((canvas.eosin, 16), (canvas.haematoxylin, int(rng.integers(20, 40)))):
                cv2.ellipse(plane, middle, vacuole, degrees, 0, 360, amount, -1, cv2.LINE_AA, 3)
    canvas.fill(centre + spokes * opening, eosin=9, haematoxylin=4)
    edges = np.stack([centre + spoke * opening, centre + spoke * base], axis=1)
    cv2.polylines(canvas.eosin, list((edges * 8).astype(np.int32)), False, 84, 1, cv2.LINE_AA, 3)
    count = max(14, int(2.0 * np.pi * radius / 8.2))
    at = _around(rng, count, jitter=0.6)
    depth_px = rng.uniform(7.5, 9.5, (count, 1)) + rng.choice([0.0, 4.0], (count, 1), p=[0.7, 0.3])
    points = centre + spokes[at] * (1.0 - depth_px / radius)
    canvas.stamp("columnar", points.astype(np.float32), np.arctan2(spokes[at, 1], spokes[at, 0]))


def _around(rng: Generator, count: int, *, jitter: float) -> NDArray[np.intp]:
    """Spread `count` places evenly, but for a jitter, over the points of a gland's outline; give their indices."""
    places = np.linspace(0, GLAND_POINTS, count, endpoint=False) + rng.uniform(-jitter, jitter, count)
    return places.astype(np.intp) % GLAND_POINTS


def _draw_tumour(canvas: Canvas, inside: NDArray[np.uint8]) -> None:
    """Draw the tumour where `inside` is not 0: nests of crowded, large, irregular nuclei, thin septa, torn lumina."""
    rng, grid = canvas.rng, canvas.zones.shape
    # nests lie where one noise is far from 0, and septa along its zero lines
    nests = np.minimum(np.abs(smooth_noise(rng, grid, 13)) * 3.0 - 0.36, 1.3 - smooth_noise(rng, grid, 7))
    nests[canvas.zones != Zone.TUMOUR] = -0.6
    rough = rng.standard_normal((canvas.shape[0] // 5, canvas.shape[1] // 5), dtype=np.float32)
    full = enlarge(nests.astype(np.float32), canvas.shape) + 0.06 * enlarge(rough, canvas.shape)
    nest = (full > 0) & (inside > 0)
    lumen = enlarge(smooth_noise(rng, grid, 8), canvas.shape) > 2.0
    canvas.haematoxylin[nest] = 50
    canvas.eosin[nest] = 98
    canvas.eosin[nest & lumen] = 8
    canvas.haematoxylin[nest & lumen] = 4
    open_grid = cv2.resize((nest & ~lumen).astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA)
    points = canvas.scatter(18.0, np.clip(open_grid * 1.4 - 0.35, 0, 0.95), jitter=0.3)
    canvas.stamp("tumour", points, rng.uniform(0, np.pi, len(points)).astype(np.float32))
    dividing = points[rng.random(len(points)) < 0.012]
    canvas.stamp("mitosis", dividing, rng.uniform(0, np.pi, len(dividing)).astype(np.float32))
    septum = (canvas.zones == Zone.TUMOUR) & (nests < 0)
    points = canvas.scatter(17.0, septum * np.float32(0.75))
    canvas.stamp("spindle", points, canvas.sample(canvas.fibre_angle, points).astype(np.float32))


def _scatter_stromal_nuclei(canvas: Canvas) -> None:
    """Scatter fibroblasts along the fibres, and lymphocytes where the stroma is inflamed."""
    rng, stroma = canvas.rng, canvas.zones == Zone.STROMA
    inflamed = np.clip(0.16 + 0.16 * smooth_noise(rng, canvas.zones.shape, 22), 0.02, 0.7)
    kinds: tuple[tuple[NucleusKind, float, NDArray[np.generic]], ...] = (
        ("spindle", 30.0, stroma * np.float32(0.8)),
        ("stromal", 38.0, stroma * np.float32(0.7)),
        ("lymphocyte", 15.0, stroma * inflamed),
    )
    for kind, spacing_px, allowed in kinds:
        points = canvas.scatter(spacing_px, allowed)
        angles = canvas.sample(canvas.fibre_angle, points).astype(np.float32) + rng.normal(0, 0.25, len(points))
        canvas.stamp(kind, points, angles.astype(np.float32))


def _develop(canvas: Canvas, tissue: NDArray[np.uint8], stain: Stain) -> NDArray[np.uint8]:
    """Turn the planes into colours: grain, uneven staining, the tissue's edge, optics, a little noise, the table."""
    rng, grid = canvas.rng, canvas.zones.shape
    repeats = (-(-canvas.shape[0] // TEXTURE_PX), -(-canvas.shape[1] // TEXTURE_PX))
    grain = np.tile(texture(1.3, 1.3, 12), repeats)[: canvas.shape[0], : canvas.shape[1]]
    soft_edge = cv2.GaussianBlur(tissue, (5, 5), 0)
    planes = []
    for plane, swing in ((canvas.haematoxylin, 0.5), (canvas.eosin, 0.35)):
        uneven = 128.0 + 10.0 * smooth_noise(rng, grid, 60) + 5.0 * smooth_noise(rng, grid, 20)
        gain = cv2.addWeighted(grain, swing, enlarge(uneven, canvas.shape).astype(np.uint8), 1.0, -128.0 * swing)
        grained = cv2.multiply(plane, gain, scale=1 / 128)
        planes.append(cv2.GaussianBlur(cv2.multiply(grained, soft_edge, scale=1 / 255), (3, 3), 0.65))
    noise = np.frombuffer(rng.bytes(canvas.eosin.size), np.uint8).reshape(canvas.shape) & 3
    blue_dye, pink_dye = np.asarray(cv2.add(planes[0], noise), np.uint16), np.asarray(planes[1], np.uint16)
    return np.asarray(np.take(stain.table(), (blue_dye << 8) | pink_dye, axis=0), np.uint8)
