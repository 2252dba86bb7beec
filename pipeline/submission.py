"""What a job of Snakemake asks for, read from its job script; what the modules for each service share."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError

PROPERTIES = "# properties = "
"""Begins the line of a job script in which Snakemake says what the job is."""

NAME_LENGTH = 40
"""Services allow 63 or 128 characters, of which a random ending takes nine."""


class UnreachableError(PipelineError):
    """The service did not answer, or was busy; its jobs go on meanwhile."""


@dataclass(frozen=True)
class Request:
    """One job, or one group of jobs, for a service to run.

    Parameters
    ----------
    name
        What it does, in letters, digits and hyphens.
    command
        Program and arguments.
    threads, gpus
        Processors and GPUs.
    memory_mb, disk_mb
        Memory, and room for temporary files, in MB.
    minutes
        Time after which it is stopped.
    """

    name: str
    command: tuple[str, ...]
    threads: int
    gpus: int
    memory_mb: int
    disk_mb: int
    minutes: int


def read(script: Path) -> Request:
    """Read what a job asks for.

    Parameters
    ----------
    script
        Job script of Snakemake, where every node sees it under this path.

    Raises
    ------
    PipelineError
        If it is no job script, or does not say its memory and time.
    """
    lines = [line for line in script.read_text().splitlines() if line.startswith(PROPERTIES)]
    if not lines:
        raise PipelineError(
            f"{script} is no job script of Snakemake; name this command in a profile, as docs/clusters.md says"
        )
    properties = json.loads(lines[0].removeprefix(PROPERTIES))
    resources = properties["resources"]
    missing = [name for name in ("mem_mb", "runtime") if name not in resources]
    if missing:
        raise PipelineError(f"{script}: the job does not say {' and '.join(missing)}; give it with --default-resources")
    name = re.sub(r"[^a-z0-9]+", "-", str(properties.get("rule") or properties["groupid"]).lower()).strip("-")
    return Request(
        name=f"asmil-{name}"[:NAME_LENGTH].rstrip("-"),
        command=("/bin/sh", str(script.absolute())),
        threads=int(properties["threads"]),
        gpus=int(resources.get("gpu", 0)),
        memory_mb=int(resources["mem_mb"]),
        disk_mb=int(resources.get("disk_mb", 0)),
        minutes=int(resources["runtime"]),
    )


def main(submit: Callable[[Request], str], status: Callable[[str], str]) -> None:
    """Answer Snakemake: `submit SCRIPT` prints the job's id, `status ID` running, success or failed.

    Snakemake ends the run where a look at a job fails; a service that does not answer is no reason for that.
    """
    try:
        verb, word = sys.argv[1:]
        answer = submit(read(Path(word))) if verb == "submit" else status(word)
    except UnreachableError as error:
        if verb == "submit":
            sys.exit(f"Error: {error}")
        sys.stderr.write(f"Warning: {error}\n")
        answer = "running"
    except PipelineError as error:
        sys.exit(f"Error: {error}")
    sys.stdout.write(f"{answer}\n")
