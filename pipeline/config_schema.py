"""The configuration against its JSON Schema: values that arrived as text, and one sentence for what does not fit."""

import contextlib
import difflib
import math
from collections.abc import Mapping
from typing import Any

from pipeline import json_text
from pipeline.errors import ConfigError


def typed(value: Any, schema: Mapping[str, Any]) -> Any:
    """Read numbers, booleans and nulls that arrived as text: `1e-4` in YAML, and all that --config passes in braces.

    A whole number that is written as 40.0, which a schema takes for an integer, becomes one.
    """
    if isinstance(value, Mapping):
        properties = schema.get("properties", {})
        return {name: typed(item, properties.get(name, {})) for name, item in value.items()}
    options = schema.get("anyOf", [schema])
    kinds = {option.get("type") for option in options}
    if isinstance(value, str) and kinds & {"integer", "number", "boolean", "null"}:
        with contextlib.suppress(json_text.JsonError):
            value = json_text.parse(value)
    if isinstance(value, float) and value.is_integer() and "integer" in kinds and "number" not in kinds:
        return int(value)
    # NaN and infinity pass every comparison of a schema; as text they are refused
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def validate(config: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Raise a ConfigError of one sentence for the first thing in `config` that `schema` does not allow."""
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(schema)
    found = sorted(
        validator.iter_errors(config),
        key=lambda error: (error.validator != "additionalProperties", str(error.json_path)),
    )
    if not found:
        return
    error = found[0]
    place = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        unknown = next(name for name in error.instance if name not in known)
        near = difflib.get_close_matches(str(unknown), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here are {', '.join(known)}"
        raise ConfigError(f"config: unknown key '{'.'.join(filter(None, (place, str(unknown))))}'; {hint}")
    if error.validator == "required":
        raise ConfigError(
            f"config: {error.message.replace(' is a required property', ' is missing')}"
            f" in {place or 'the configuration'}; see config.yaml for the default"
        )
    raise ConfigError(f"config: {place} is {error.instance!r}; it must be {expected(error.schema)}")


def expected(schema: Mapping[str, Any]) -> str:
    """Say in words what the schema of one key allows, as in `a number above 0 and at most 1`."""
    if "enum" in schema:
        return "one of " + ", ".join(str(value) for value in schema["enum"])
    if "anyOf" in schema:
        single = [option for option in schema["anyOf"] if "items" not in option]
        listed = ["a list of them" for option in schema["anyOf"] if option.get("items") == {"anyOf": single}]
        return " or ".join([*(expected(option) for option in (single if listed else schema["anyOf"])), *listed])
    if "items" in schema:
        return f"a list, each {expected(schema['items'])}"
    if "const" in schema:
        return str(schema["const"])
    if "pattern" in schema:
        return str(schema.get("title", f"text like {schema['pattern']}"))
    kinds = {
        "integer": "a whole number",
        "number": "a number",
        "string": "text",
        "boolean": "true or false",
        "null": "null",
        "object": "a section",
        "array": "a list",
    }
    words = kinds[schema["type"]] if isinstance(schema.get("type"), str) else "another value"
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{text} {schema[key]}" for key, text in bounds.items() if key in schema]
    return f"{words} {' and '.join(limits)}".strip()
