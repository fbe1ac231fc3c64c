"""A short soak on each kind of driver; and that it would notice what it is there to notice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ringloop._driver.choose import why_not_uring

SOAK = Path(__file__).parent / "soak"
SECONDS = 5
SEED = 7
LIMIT_S = 90

# A run of nothing but one scenario, which is wrong in a way of its own.
SABOTAGE = """
import asyncio, os, sys, time
sys.path.insert(0, sys.argv[1])
from soak import health, others, streams, talk
from soak.pattern import Pattern
from soak.runner import Settings, Soak

health.REST_S = 0.5
kept = []

async def corrupt(scene):
    good = Pattern.piece
    def bad(self, at, size):
        data = bytearray(good(self, at, size))
        if data and at > 50:
            data[-1] ^= 1
        return bytes(data)
    check = Pattern.check
    talk.Pattern = type("Sender", (Pattern,), {"piece": bad, "check": lambda self, at, data:
        Pattern(self.key).check(at, data)})
    await streams.tcp(scene)

async def leak_fd(scene):
    os.dup(0)
    await asyncio.sleep(0.02)  # so that some are left

async def leak_task(scene):
    kept.append(asyncio.create_task(asyncio.sleep(3600)))

async def leak_operation(scene):
    r, w = os.pipe()
    kept.append((r, w))
    scene.loop.add_reader(r, print)
    await asyncio.sleep(0.02)

async def leak_child(scene):
    import subprocess
    kept.append(subprocess.Popen(["sleep", "20"]))

async def fail_in_callback(scene):
    scene.loop.call_soon(lambda: 1 / 0)
    await asyncio.sleep(0.01)

async def wait_for_ever(scene):
    await asyncio.get_running_loop().create_future()

async def block(scene):
    time.sleep(3600)

hang_after_s = 1.0 if sys.argv[2] in ("wait_for_ever", "block") else 60.0
soak = Soak(Settings("epoll", 1.0, 1, hang_after_s), {globals()[sys.argv[2]]: 1})
passed = soak.run()
soak.board.conclude()
for child in kept:
    if hasattr(child, "kill"):
        child.kill()
sys.stdout.flush()
os._exit(0 if passed else 1)
"""


def soak(name: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SOAK), "--driver", name]
    command += ["--minutes", str(SECONDS / 60), "--seed", str(SEED)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


@pytest.mark.parametrize("name", ["uring", "epoll", "faulty-1"])
def test_some_seconds_of_everything_leave_nothing_to_complain_about(name: str) -> None:
    if "uring" in name and (reason := why_not_uring()):
        pytest.skip(reason)
    done = soak(name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bytes checked" in done.stdout


@pytest.mark.parametrize(
    ("what", "status", "said"),
    [
        ("corrupt", 1, "Corrupted: stream"),
        ("leak_fd", 1, "left behind: file descriptors"),
        ("leak_task", 1, "left behind: task"),
        ("leak_operation", 1, "left behind: driver slots"),
        ("leak_child", 1, "left behind: child process"),
        ("fail_in_callback", 1, "the loop's exception handler was called"),
        ("wait_for_ever", 3, "in wait_for_ever"),
        ("block", 3, "in block"),
    ],
)
def test_it_notices(what: str, status: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SABOTAGE, str(SOAK.parent), what],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert said in done.stdout + done.stderr
