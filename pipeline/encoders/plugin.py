"""An encoder of the user's own: `module:attribute`, a class or function of a module that Python can import.

The attribute is called with the keyword arguments `weights` (a path or None), `device`, `threads`, `precision` and
`batch_size`, and gives an `Encoder`. It carries its `EncoderSpec` as `spec`, which is read before any slide is.
"""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.encoders.registry import EncoderSpec
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.encoders import Encoder


def plugin_spec(name: str) -> EncoderSpec:
    """Give what the user's encoder declares.

    Raises
    ------
    ConfigError
        If the module or attribute is missing, or carries no spec.
    """
    found = getattr(_attribute(name), "spec", None)
    if not isinstance(found, EncoderSpec):
        raise ConfigError(f"encoder.name: {name} has no `spec`; give it one of pipeline.encoders.EncoderSpec")
    return replace(found, name=name, builder="plugin")


def build_plugin(spec: EncoderSpec, path: Path | None, **settings: Any) -> "Encoder":
    """Call the user's attribute.

    Raises
    ------
    ConfigError
        If what it gives is no encoder.
    """
    encoder: Encoder = _attribute(spec.name)(weights=path, **settings)
    missing = [part for part in ("spec", "mpp", "patch_px", "dim") if not hasattr(encoder, part)]
    if missing or not callable(encoder):
        raise ConfigError(
            f"encoder.name: {spec.name} gave a {type(encoder).__name__} without {', '.join(missing) or 'a call'}; "
            "give what pipeline.encoders.Encoder describes"
        )
    return encoder


def _attribute(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:  # the workflow plans with another program than the one that runs a job
        sys.path.append(folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"encoder.name: {name}: {error}; put the module into the folder you run in, or install it"
        ) from error
    if not callable(getattr(module, attribute, None)):
        raise ConfigError(f"encoder.name: {module.__file__} has no function or class {attribute!r}; correct the name")
    return getattr(module, attribute)
