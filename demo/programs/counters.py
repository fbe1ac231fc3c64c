"""Three counters from 1 to 3, with a pause after each number.

Synchronous counters run one after the other, so their pauses add up to 3 seconds. Asynchronous
counters pause together, and all three are done after 1 second.
"""

import asyncio
import time

NAMES = ("A", "B", "C")
LAST = 3
PAUSE_S = 1 / 3


def count(name: str) -> None:
    for number in range(1, LAST + 1):
        print("synchronous", name, number, flush=True)
        time.sleep(PAUSE_S)


async def count_async(name: str) -> None:
    for number in range(1, LAST + 1):
        print("asynchronous", name, number, flush=True)
        await asyncio.sleep(PAUSE_S)


async def count_together() -> None:
    loop = type(asyncio.get_running_loop())
    print(f"loop {loop.__module__}.{loop.__qualname__}", flush=True)
    await asyncio.gather(*(count_async(name) for name in NAMES))


def main() -> None:
    started = time.perf_counter()
    for name in NAMES:
        count(name)
    print(f"synchronous took {time.perf_counter() - started:.3f}", flush=True)

    started = time.perf_counter()
    asyncio.run(count_together())
    print(f"asynchronous took {time.perf_counter() - started:.3f}", flush=True)


if __name__ == "__main__":
    main()
