"""JSON from outside: whatever is wrong with it comes out as one kind of error, with a clause that says what."""

import json
from typing import Any


class JsonError(ValueError):
    """Text that is no JSON, or not the kind that is needed; the message goes on after the file's name."""


def parse(content: bytes | str) -> Any:
    """Parse JSON; bytes are UTF-8, with or without a byte order mark.

    Raises
    ------
    JsonError
        If it is not UTF-8, not JSON, or nested deeper than Python reads.
    """
    try:
        return json.loads(content.decode("utf-8-sig") if isinstance(content, bytes) else content)
    except UnicodeDecodeError as error:
        raise JsonError("is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise JsonError(f"is not JSON (line {error.lineno}: {error.msg})") from error
    except ValueError as error:  # a number of more digits than Python converts
        raise JsonError(f"is not JSON that can be read ({error})") from error
    except RecursionError as error:
        raise JsonError("is JSON nested too deep to be read") from error


def parse_object(content: bytes | str) -> dict[str, Any]:
    """Parse a JSON object; raises as `parse` does, and where it is something else."""
    found = parse(content)
    if not isinstance(found, dict):
        raise JsonError("holds no JSON object")
    return found
