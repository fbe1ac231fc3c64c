"""`ringloop doctor`: what this machine can do for ringloop, in words."""

from __future__ import annotations

import os
import platform
import resource
from dataclasses import dataclass

import ringloop
from ringloop._driver.choose import why_not_uring
from ringloop._driver.uring import kernel_version

# (kernel, what it brings), newest first. Only what ringloop uses.
GAINS = (
    ((6, 15), "waiting for sockets that does not count as I/O wait (NO_IOWAIT)"),
    ((6, 6), "submission without an index array (NO_SQARRAY)"),
    ((6, 1), "io_uring at all, as ringloop uses it (DEFER_TASKRUN)"),
)
MANY_FILES = 65536


@dataclass
class Finding:
    good: bool
    text: str
    advice: str | None = None


def examine() -> list[Finding]:
    """Look at the machine; the findings in the order in which they are told."""
    release = os.uname().release
    findings = []
    reason = why_not_uring()
    if reason is None:
        findings.append(Finding(True, "io_uring works: set-up, probe and self-test passed"))
    else:
        findings.append(
            Finding(False, f"io_uring cannot be used: {reason}", "ringloop runs on epoll instead")
        )
    kernel = kernel_version()
    lacking = [f"{a}.{b}: {what}" for (a, b), what in GAINS if kernel < (a, b)]
    if lacking:
        findings.append(
            Finding(
                False,
                f"Linux {release} is not the newest that ringloop can use",
                "a newer kernel brings " + "; ".join(lacking),
            )
        )
    else:
        findings.append(Finding(True, f"Linux {release} has all that ringloop uses"))
    if (6, 6) <= kernel < (6, 8):
        findings.append(
            Finding(
                False,
                "multishot accept is unreliable on 6.6 and 6.7",
                "ringloop accepts one connection at a time; 6.8 accepts faster",
            )
        )
    findings.append(_tls())
    wanted = os.environ.get("RINGLOOP_DRIVER")
    if wanted == "epoll" and reason is None:
        findings.append(
            Finding(
                False,
                "RINGLOOP_DRIVER=epoll keeps ringloop from io_uring",
                "unset it to use io_uring",
            )
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < MANY_FILES:
        findings.append(
            Finding(
                False,
                f"this process may open {soft} files, so fewer connections",
                f"raise the limit for many connections: ulimit -n {hard}"
                if soft < hard
                else "raise the hard limit for many connections, as root: LimitNOFILE= of a "
                "systemd unit, or nofile in /etc/security/limits.conf",
            )
        )
    return findings


def _tls() -> Finding:
    try:
        info = ringloop.backend_info()
    except (RuntimeError, ValueError) as error:
        return Finding(False, str(error))
    if info["tls"] == "direct":
        return Finding(True, "TLS calls the libssl of the ssl module directly")
    if info["tls"] is None:
        return Finding(False, f"there is no TLS: {info['tls_reason']}")
    return Finding(
        False,
        f"TLS does not call libssl directly: {info['tls_reason']}",
        "it goes through ssl.MemoryBIO instead, which costs more CPU",
    )


def main() -> int:
    """Print the findings; 0 where io_uring is used, else 1."""
    print(
        f"ringloop {ringloop.__version__}, Python {platform.python_version()}, {platform.machine()}"
    )
    try:
        info = ringloop.backend_info()
    except (RuntimeError, ValueError) as error:
        print(f"no event loop can be made: {error}")
        return 1
    print(
        f"new event loops use {info['driver']}" + (f": {info['reason']}" if info["reason"] else "")
    )
    print()
    for finding in examine():
        print(f"  {'ok  ' if finding.good else 'note'}  {finding.text}")
        if finding.advice:
            print(f"        -> {finding.advice}")
    if info["features"]:
        print("\nfeatures found in the kernel:")
        for name, value in info["features"].items():
            shown = ("no", "yes")[value] if isinstance(value, bool) else value
            print(f"  {name:18} {shown}")
    return 0 if info["driver"] == "uring" else 1
