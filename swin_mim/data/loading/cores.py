"""The cores that this process may use, and its part of them."""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def processes_here() -> int:
    """Processes of this launch on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def share_of_cores(processes: int | None = None) -> int:
    """Cores for this process: its part of those that it is bound to, at least 1.

    Args:
        processes: that share them; None: those of its launch on this machine.
    """
    return max(1, bound_cores() // (processes or processes_here()))


def usable_cores() -> int:
    """Cores that can be kept busy: those this process is bound to, or fewer where its container has a quota of time."""
    quota = cpu_quota(CGROUP)
    return bound_cores() if quota is None else max(1, min(bound_cores(), int(quota)))


def bound_cores() -> int:
    """Cores that this process may run on."""
    # macOS binds no process
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(group: Path) -> float | None:
    """Seconds of processor time a second that a control group may take; None: it has no limit.

    Args:
        group: folder of cgroup v2, or the one with v1's controllers.
    """
    if (limit := group / "cpu.max").exists():
        quota, period = limit.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    quota_file, period_file = (group / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
    if quota_file.exists() and period_file.exists() and (micros := int(quota_file.read_text())) > 0:
        return micros / int(period_file.read_text())
    return None
