"""What the figures were measured on."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

from ringloop.bench import compiler, peers


def describe() -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "virtual": _is_virtual(),
        "load_average": os.getloadavg()[0],
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": compiler.version(),
        "versions": {name: peer.version for name, peer in peers.PEERS.items() if peer.module},
    }


def file_system(folder: Path) -> str:
    """What the folder is on, by the mount table's name for it; empty if that does not say.

    By the mount and not by st_dev: a subvolume of btrfs has a device that the table lacks.
    """
    fd = os.open(folder, os.O_RDONLY)
    try:
        about = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        table = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""  # no /proc
    finally:
        os.close(fd)
    mount = next((line.split()[1] for line in about if line.startswith("mnt_id:")), None)
    for line in table:
        fields, _, rest = line.partition(" - ")
        if fields.split(" ", 1)[0] == mount:
            return rest.split(" ", 1)[0]
    return ""


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "cpu model"):
            return value.strip()
    return platform.processor() or "unknown"


def _is_virtual() -> bool:
    """A virtual machine, as far as the processor tells."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return "hypervisor" in flags.split()
