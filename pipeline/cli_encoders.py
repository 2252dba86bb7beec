"""The commands around encoders: which there are, their weights, and features made elsewhere."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from pipeline.options import WeightsFolder

weights_app = typer.Typer(help="Fetch, verify and carry encoder weights.", no_args_is_help=True)


class Stain(StrEnum):
    """How colours are brought to those of one reference."""

    none = "none"
    macenko = "macenko"
    reinhard = "reinhard"


def add_encoder_commands(app: typer.Typer) -> None:
    """Add `encoders`, `import` and `weights ...` to the command line."""
    app.command(name="encoders")(list_encoders)
    app.command(name="import")(import_features)
    app.add_typer(weights_app, name="weights")


def list_encoders(*, folder: WeightsFolder = Path("weights")) -> None:
    """List the known encoders with their licence, and whether their weights are here."""
    from pipeline.weights_bundle import table

    print(table(folder))  # noqa: T201 - the command's output


@weights_app.command("fetch")
def fetch_weights(
    names: Annotated[list[str], Argument(help="Encoders.", show_default=False)],
    *,
    folder: WeightsFolder = Path("weights"),
) -> None:
    """Download encoders' weights and verify them."""
    from pipeline.weights_bundle import fetch_all

    for path in fetch_all(names, folder):
        print(path)  # noqa: T201 - the paths are the command's output


@weights_app.command("list")
def list_weights(*, folder: WeightsFolder = Path("weights")) -> None:
    """List the weights that are here."""
    from pipeline.weights_bundle import present

    for name, path in present(folder):
        print(f"{name}\t{path}\t{path.stat().st_size / 1e6:.0f} MB")  # noqa: T201 - the command's output


@weights_app.command("verify")
def verify_weights(*, folder: WeightsFolder = Path("weights")) -> None:
    """Read all weights that are here and compare them with their published and recorded digests."""
    from pipeline.weights_bundle import verify_all

    for name, path, digest in verify_all(folder):
        print(f"{name}\t{path}\t{digest}")  # noqa: T201 - the command's output


@weights_app.command("bundle")
def bundle_weights(
    names: Annotated[list[str], Argument(help="Encoders.", show_default=False)],
    *,
    archive: Annotated[Path, Option(help="Archive to write.")] = Path("weights.tar"),
    folder: WeightsFolder = Path("weights"),
) -> None:
    """Pack encoders' weights into one archive, for a machine without internet."""
    from pipeline.weights_bundle import bundle

    bundle(names, folder, archive)


@weights_app.command("import")
def import_weights(
    archive: Annotated[Path, Argument(help="Archive of `weights bundle`.", show_default=False)],
    *,
    folder: WeightsFolder = Path("weights"),
) -> None:
    """Put the weights of an archive in their place."""
    from pipeline.weights_bundle import unpack

    for path in unpack(archive, folder):
        print(path)  # noqa: T201 - the paths are the command's output


def import_features(
    features: Annotated[Path, Argument(help="Folder of HDF5 files of CLAM, TRIDENT or STAMP.", show_default=False)],
    *,
    encoder: Annotated[str, Option(help="What they were made with.", show_default=False)],
    slides: Annotated[Path, Option(help="Folder of the slides.")] = Path("data/raw"),
    results: Annotated[Path, Option(help="Folder of the results.")] = Path("results"),
    coordinates: Annotated[Path | None, Option(help="CLAM's folder `patches`.")] = None,
    default_mpp: Annotated[
        float | None, Option(min=0.05, max=10, help="um per pixel if the slide does not say it.")
    ] = None,
    mpp_from_objective: Annotated[
        bool, Option(help="Take 10 um / objective power if nothing better is known.")
    ] = False,
) -> None:
    """Take over features that another toolbox computed, so that models can be trained on them."""
    from pipeline import imports

    imports.run(
        features,
        slides=slides,
        results=results,
        encoder=encoder,
        coordinates=coordinates,
        default_mpp=default_mpp,
        mpp_from_objective=mpp_from_objective,
    )
