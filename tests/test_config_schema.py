"""Values of a configuration as they arrive: as text from the command line, as floats from YAML."""

from typing import Any

import pytest

from pipeline import config_schema

SCHEMA: dict[str, Any] = {
    "properties": {
        "epochs": {"type": "integer"},
        "rate": {"type": "number"},
        "patience": {"anyOf": [{"type": "null"}, {"type": "integer"}]},
        "half_life": {"anyOf": [{"type": "null"}, {"type": "number"}]},
        "name": {"type": "string"},
    }
}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"epochs": 40.0}, {"epochs": 40}),
        ({"epochs": "40.0"}, {"epochs": 40}),
        ({"epochs": 2.5}, {"epochs": 2.5}),  # left for the schema to refuse
        ({"patience": 3.0}, {"patience": 3}),
        ({"patience": "null"}, {"patience": None}),
        ({"rate": "1e-4", "half_life": 2.0}, {"rate": 1e-4, "half_life": 2.0}),
        ({"rate": float("nan")}, {"rate": "nan"}),
        ({"name": "40.0"}, {"name": "40.0"}),
    ],
)
def test_values_become_what_the_schema_means(given: dict[str, Any], expected: dict[str, Any]) -> None:
    found = config_schema.typed(given, SCHEMA)
    assert found == expected
    assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]
