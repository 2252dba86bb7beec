import pytest

from pipeline.errors import SlideError
from pipeline.scale import resolve_scale


def ome(attributes: str) -> dict[str, str]:
    return {
        "tiff.ImageDescription": f'<?xml version="1.0"?><OME><Image ID="0"><Pixels {attributes}><Channel/></Pixels>'
    }


@pytest.mark.parametrize(
    ("attributes", "mpp"),
    [
        ('PhysicalSizeX="0.499" PhysicalSizeXUnit="µm" PhysicalSizeY="0.5" PhysicalSizeYUnit="µm"', (0.499, 0.5)),
        ('PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="250" PhysicalSizeYUnit="nm"', (0.25, 0.25)),
        ('SizeX="9" PhysicalSizeX="0.25" PhysicalSizeY="0.25"', (0.25, 0.25)),
    ],
)
def test_the_scale_of_an_ome_tiff_is_read_from_its_xml(attributes: str, mpp: tuple[float, float]) -> None:
    scale = resolve_scale(ome(attributes))
    assert (scale.mpp_x, scale.mpp_y) == pytest.approx(mpp)
    assert scale.source == "properties"
    assert "OpenSlide reads the first alone" in scale.warnings[0]


@pytest.mark.parametrize(
    "attributes", ['SizeX="9"', 'PhysicalSizeX="1" PhysicalSizeXUnit="pixel"', 'PhysicalSizeX="x"']
)
def test_ome_xml_without_a_length_is_no_scale(attributes: str) -> None:
    with pytest.raises(SlideError, match="no mpp in its properties"):
        resolve_scale(ome(attributes))


def test_openslides_own_scale_wins_over_ome_xml() -> None:
    stated = {"openslide.mpp-x": "0.3", "openslide.mpp-y": "0.3", **ome('PhysicalSizeX="0.5" PhysicalSizeY="0.5"')}
    assert resolve_scale(stated).mpp == 0.3
    assert not resolve_scale(stated).warnings


def test_one_axis_is_used_for_both_and_says_so() -> None:
    scale = resolve_scale({"openslide.mpp-x": "0.3"})
    assert (scale.mpp_x, scale.mpp_y) == (0.3, 0.3)
    assert "only one axis" in scale.warnings[0]


def test_a_scale_that_does_not_fit_the_objective_is_told() -> None:
    scale = resolve_scale({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25", "openslide.objective-power": "20"})
    assert "unusual for the stated 20x objective" in scale.warnings[0]
