"""A SLURM of one node on this machine, for as long as a test needs it."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

CONFIG = Path("/etc/slurm/slurm.conf")
"""Where jobs look for it; one that SLURM_CONF names does not reach them."""

OURS = "# written by tests/workflow/slurm.py\n"
GRES = CONFIG.with_name("gres.conf")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
PID_FILES = [Path(name) for name in ("/run/slurmd.pid", "/run/slurmctld.pid", "/run/munge/munged.pid")]


def why_not() -> str:
    """Say why no SLURM can be started here; empty where one can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"SLURM is not installed ({', '.join(missing)}); apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "SLURM's daemons are started as root only"
    if CONFIG.exists() and not CONFIG.read_text().startswith(OURS):  # one of a test that was killed is taken over
        return f"{CONFIG} exists: this machine has a SLURM of its own"
    return ""


@contextmanager
def one_node() -> Iterator[None]:
    """Start munge and SLURM with two CPUs and one "gpu" (a device that computes nothing), and stop them at the end."""
    # tests beside each other wait for their turn; the lock ends with its process
    turn = (Path(tempfile.gettempdir()) / "asmil-wsi-test-slurm.lock").open("w")
    fcntl.flock(turn, fcntl.LOCK_EX)
    reason = why_not()
    if reason:
        turn.close()
        pytest.skip(reason)
    host = socket.gethostname()
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    _stop()
    CONFIG.write_text(
        f"""{OURS}
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
GresTypes=gpu
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={min(2, os.cpu_count() or 1)} RealMemory={memory_mb - 512} Gres=gpu:1
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
    )
    GRES.write_text(f"NodeName={host} Name=gpu File=/dev/null\n")
    try:
        _start()
        yield
    finally:
        _stop()
        CONFIG.unlink()
        GRES.unlink()
        turn.close()


def _start() -> None:
    for folder in ("/run/munge", "/var/spool/slurmctld", "/var/spool/slurmd", "/var/log/slurm"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    subprocess.run(["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged"], check=True)
    for daemon in (["slurmctld", "-c"], ["slurmd", "-c"]):  # without what an earlier one left
        subprocess.run(daemon, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while _state() != "idle":
        assert time.monotonic() < deadline, f"SLURM's node is {_state() or 'not there'}; see /var/log/slurm"
        time.sleep(0.5)


def _stop() -> None:
    pids = [int(file.read_text()) for file in PID_FILES if file.exists() and file.read_text().strip()]
    pids = [pid for pid in pids if _name(pid) in PROGRAMS]  # a file may outlive its daemon
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 30
    # the next start would meet their sockets and files
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.2)


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _state() -> str:
    found = subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True, check=False)
    return found.stdout.strip()
