"""offload.to_process() and ProcessPool: results, limits, cancelling, and workers that die."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import logging
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import offloaded
import ringloop
from ringloop import offload
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

Run = Any
TIMEOUT_S = 20

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture(scope="module", autouse=True)
def fork_server() -> Iterator[None]:
    """It stays until the program ends, and so does multiprocessing's resource tracker."""
    # Workers import what the program is, which is pytest here.
    multiprocessing.set_forkserver_preload(["pytest", "offloaded"])
    multiprocessing.forkserver.ensure_running()
    yield
    # Other tests count on having no children.
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]
    multiprocessing.resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


@pytest.fixture
def run(nothing_left: None, files_run: Run) -> Run:
    def run(main: Any, timeout: float = TIMEOUT_S) -> Any:
        return files_run(main, timeout)

    return run


def descendants() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.fixture
def nothing_left() -> Iterator[None]:
    threads = set(threading.enumerate())
    processes = descendants()
    yield
    wait_until(lambda: set(threading.enumerate()) <= threads)
    wait_until(lambda: descendants() <= processes)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def begun(reports: asyncio.Queue[Any], *args: Any) -> tuple[asyncio.Task[Any], int]:
    """A call of a function that reports its pid first."""
    task = asyncio.create_task(offload.to_process(*args, progress=reports.put_nowait))
    return task, await reports.get()


# -- results, errors, progress -------------------------------------------------------


def test_a_result_comes_back_from_another_process(run: Run) -> None:
    async def main() -> None:
        assert await offload.to_process(offloaded.square, 7) == 49
        pids = {await offload.to_process(offloaded.pid) for _ in range(20)}
        assert len(pids) == 1
        assert os.getpid() not in pids

    run(main())


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_a_pool_works_side_by_side_and_ends_its_processes(run: Run, start_method: Any) -> None:
    async def main() -> None:
        async with offload.ProcessPool(2, start_method=start_method) as pool:
            pids = await asyncio.gather(*(pool.run(offloaded.pid_after, 0.05) for _ in range(6)))
            assert len(set(pids)) == 2
            assert all(is_alive(pid) for pid in pids)
        assert not any(is_alive(pid) for pid in pids)
        with pytest.raises(RuntimeError, match="closed"):
            await pool.run(offloaded.square, 1)

    run(main())


def test_large_arguments_and_results(run: Run) -> None:
    async def main() -> None:
        data = os.urandom(1 << 20) * 20
        assert await offload.to_process(offloaded.same, data) == data

    run(main())


def test_an_exception_comes_back_with_its_traceback(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(LookupError, match="mine") as caught:
            await offload.to_process(offloaded.fail, "mine")
        cause = caught.value.__cause__
        assert isinstance(cause, offload.RemoteTraceback)
        assert "offloaded.py" in str(cause) and "in fail" in str(cause)
        assert "_worker.py" not in str(cause)
        assert await offload.to_process(offloaded.square, 2) == 4

    run(main())


def test_an_exception_that_is_false_comes_back_itself(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(offloaded.NoErrors):
            await offload.to_process(offloaded.fail_with_no_errors)

    run(main())


def test_an_exception_that_cannot_come_over_is_told_in_words(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(offload.RemoteError, match=r"TwoArgumentsError: 1 and 2") as caught:
            await offload.to_process(offloaded.fail_with_two_arguments)
        assert "in fail_with_two_arguments" in str(caught.value.__cause__)

    run(main())


def test_what_cannot_be_pickled_is_said_in_one_sentence(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(pickle.PicklingError, match=r"<lambda> cannot .* top level of a module"):
            await offload.to_process(lambda: None)
        with pytest.raises(pickle.PicklingError, match=r"argument 2, a lock, .* pass plain data"):
            await offload.to_process(isinstance, 1, threading.Lock())  # type: ignore[arg-type]
        with pytest.raises(pickle.PicklingError, match=r"result, a function, .* plain data"):
            await offload.to_process(offloaded.give_a_lambda)
        assert await offload.to_process(offloaded.square, 2) == 4

    run(main())


def test_what_the_worker_cannot_load_is_explained(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        await offload.to_process(offloaded.pid)  # a worker from before there was the module
        (tmp_path / "too_late.py").write_text("def f(): pass\n")
        monkeypatch.syspath_prepend(tmp_path)
        import too_late  # type: ignore[import-not-found]  # noqa: PLC0415

        with pytest.raises(ModuleNotFoundError, match="too_late") as caught:
            await offload.to_process(too_late.f)
        assert "must be importable there" in caught.value.__notes__[0]

    run(main())


def test_progress_comes_in_order_and_before_the_result(run: Run) -> None:
    async def main() -> None:
        seen: list[Any] = []
        names: set[str] = set()

        def progress(value: int) -> None:
            seen.append(value)
            names.add(variable.get())

        variable.set("the caller's")
        assert await offload.to_process(offloaded.count, 1000, progress=progress) == "counted"
        assert seen == list(range(1000))
        assert names == {"the caller's"}
        # The same worker, and nobody who wants to know.
        assert await offload.to_process(offloaded.count, 10) == "counted"
        assert len(seen) == 1000

    run(main())


def test_progress_that_raises_is_the_loops_affair(run: Run) -> None:
    async def main() -> None:
        errors: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: errors.append(context))

        def progress(value: int) -> None:
            raise LookupError(value)

        assert await offload.to_process(offloaded.count, 2, progress=progress) == "counted"
        assert [error["exception"].args for error in errors] == [(0,), (1,)]

    run(main())


def test_workers_may_have_children_of_their_own(run: Run) -> None:
    async def main() -> None:
        assert await offload.to_process(offloaded.spawn_a_process) == "1"

    run(main())


def test_multiprocessing_leaves_the_workers_to_us(run: Run) -> None:
    """It would poll them in each thread that starts another."""

    async def main() -> None:
        assert is_alive(await offload.to_process(offloaded.pid))
        assert multiprocessing.active_children() == []

    run(main())


def test_a_kernel_without_pidfds_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(pid: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    async def main() -> None:
        monkeypatch.setattr(os, "pidfd_open", fail)
        with pytest.raises(RuntimeError, match=r"pidfd_open\(\): Linux 5\.3"):
            await offload.to_process(offloaded.pid)
        monkeypatch.undo()

    run(main())


# -- limits --------------------------------------------------------------------------


def test_a_thousand_calls_through_a_limiter_of_four(run: Run) -> None:
    async def main() -> None:
        limiter = asyncio.Semaphore(4)
        calls = [offload.to_process(offloaded.square, i, limiter=limiter) for i in range(1000)]
        calls.append(offload.to_process(offloaded.pid, limiter=limiter))
        before = descendants()
        *squares, _ = await asyncio.gather(*calls)
        assert squares == [i * i for i in range(1000)]
        assert 1 <= len(descendants() - before) <= 4

    run(main(), 60)


def test_waiting_calls_that_are_cancelled_let_the_others_pass(run: Run) -> None:
    async def main() -> None:
        async with offload.ProcessPool(1) as pool:
            first = asyncio.create_task(pool.run(offloaded.sleep, 0.05))
            rest = [asyncio.create_task(pool.run(offloaded.square, i)) for i in range(50)]
            await asyncio.sleep(0)
            for task in rest[::2]:
                task.cancel()
            await first
            results = await asyncio.gather(*rest, return_exceptions=True)
            assert results[1::2] == [i * i for i in range(50)][1::2]
            assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])

    run(main())


def test_a_pool_needs_a_size_and_refuses_fork() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="one worker or more, not 0"):
            offload.ProcessPool(0)
        with pytest.raises(ValueError, match="a copy of the running loop"):
            offload.ProcessPool(1, start_method="fork")  # type: ignore[arg-type]

    asyncio.run(main())


# -- cancelling ----------------------------------------------------------------------


def test_the_process_of_a_cancelled_call_is_dead_when_the_call_has_ended(run: Run) -> None:
    async def main() -> None:
        task, pid = await begun(asyncio.Queue(), offloaded.report_pid_and_sleep)
        assert is_alive(pid)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not is_alive(pid)
        assert await offload.to_process(offloaded.pid) != pid

    run(main())


def test_a_call_that_holds_the_gil_can_be_stopped(run: Run) -> None:
    async def main() -> None:
        task, pid = await begun(asyncio.Queue(), offloaded.report_pid_and_hold_the_gil)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not is_alive(pid)

    run(main())


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, 5, 7, 10, 20])
def test_cancelling_at_any_turn_of_the_loop(run: Run, turns: int) -> None:
    """With a worker to be started, and with one that waits; before, in and after sending."""

    async def main() -> None:
        async with offload.ProcessPool(1) as pool:
            for size in (1, 1, 1 << 22):
                task = asyncio.create_task(pool.run(offloaded.same, b"x" * size))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    assert await task == b"x" * size
                except asyncio.CancelledError:
                    pass
                if size == 1:
                    assert await pool.run(offloaded.square, 3) == 9
            assert await pool.run(offloaded.square, 3) == 9

    run(main())


def test_a_worker_that_was_started_for_a_cancelled_call_serves_the_next(run: Run) -> None:
    async def main() -> None:
        async with offload.ProcessPool(1) as pool:
            before = descendants()
            for _ in range(5):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.001):
                        await pool.run(offloaded.sleep, offloaded.TIMEOUT_S)
            pid = await pool.run(offloaded.pid)
            assert descendants() - before == {pid}

    run(main())


def test_a_storm_of_cancellations(run: Run) -> None:
    async def main() -> None:
        async with offload.ProcessPool(2) as pool:
            tasks = [
                asyncio.create_task(pool.run(offloaded.pid_after, 0.002 * (i % 5)))
                for i in range(60)
            ]
            for i, task in enumerate(tasks):
                if i % 3 == 0:
                    asyncio.get_running_loop().call_later(0.01 * i, task.cancel)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for i, result in enumerate(results):
                assert isinstance(result, int | asyncio.CancelledError), result
                assert i % 3 == 0 or isinstance(result, int)
            pids = await asyncio.gather(*(pool.run(offloaded.pid_after, 0.05) for _ in range(2)))
            assert len(set(pids)) == 2

    run(main(), 60)


# -- workers that die ----------------------------------------------------------------


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_a_worker_that_is_killed_fails_its_own_call_only(run: Run, start_method: Any) -> None:
    async def main() -> None:
        async with offload.ProcessPool(2, start_method=start_method) as pool:
            other = asyncio.create_task(pool.run(offloaded.pid_after, 0.3))
            with pytest.raises(offload.WorkerDiedError, match=r"by SIGKILL, .* during die\(\)"):
                await pool.run(offloaded.die, signal.SIGKILL)
            pids = {await other}
            while len(pids) < 2:  # until the new one is ready, the other may do all
                calls = (pool.run(offloaded.pid_after, 0.1) for _ in range(2))
                pids.update(await asyncio.gather(*calls))
            assert len(pids) == 2

    run(main())


def test_a_worker_that_leaves(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(offload.WorkerDiedError, match=r"ended with status 3 during leave\(\)"):
            await offload.to_process(offloaded.leave, 3)
        assert await offload.to_process(offloaded.square, 2) == 4

    run(main())


def test_an_idle_worker_that_is_killed_is_replaced(run: Run) -> None:
    async def main() -> None:
        async with offload.ProcessPool(1) as pool:
            pid = await pool.run(offloaded.pid)
            os.kill(pid, signal.SIGKILL)
            while pool._pool.idle:  # until the loop, too, has noticed
                await asyncio.sleep(0.001)
            assert await pool.run(offloaded.pid) != pid

    run(main())


def test_a_worker_that_is_killed_by_a_signal_without_a_name(run: Run) -> None:
    async def main() -> None:
        number = signal.SIGRTMIN + 5
        with pytest.raises(offload.WorkerDiedError, match=f"killed by signal {number} during"):
            await offload.to_process(offloaded.die, number)
        assert await offload.to_process(offloaded.square, 2) == 4

    run(main())


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_a_worker_whose_child_lives_on_is_dead_all_the_same(run: Run, start_method: Any) -> None:
    """The child has the worker's socket, so there is no end of the stream."""

    async def main() -> None:
        children: list[int] = []
        async with offload.ProcessPool(1, start_method=start_method) as pool:
            with pytest.raises(offload.WorkerDiedError, match="SIGKILL"):
                await pool.run(offloaded.leave_a_child_behind, progress=children.append)
            assert is_alive(children[0])
            os.kill(children[0], signal.SIGKILL)

    run(main())


def test_a_pool_that_is_closed_with_a_call_in_flight(run: Run) -> None:
    async def main() -> None:
        reports: asyncio.Queue[Any] = asyncio.Queue()
        pool = offload.ProcessPool(1)
        calls = [
            asyncio.create_task(
                pool.run(offloaded.report_pid_and_sleep, progress=reports.put_nowait)
            )
            for _ in range(2)
        ]
        pid = await reports.get()
        await pool.aclose()
        assert not is_alive(pid)
        for call in calls:  # the one that worked, and the one that waited
            with pytest.raises(RuntimeError, match="closed"):
                await call
        await pool.aclose()

    run(main())


# -- the ends of loops and programs --------------------------------------------------


@pytest.mark.parametrize("make", [ringloop.new_event_loop, asyncio.new_event_loop])
@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_a_loop_that_is_closed_with_calls_in_flight(
    make: Callable[[], asyncio.AbstractEventLoop],
    start_method: Any,
    nothing_left: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)  # a task is destroyed, as it should be
    loop = make()

    async def begin() -> tuple[int, int, Any]:
        pool = offload.ProcessPool(2, start_method=start_method)
        reports: asyncio.Queue[int] = asyncio.Queue()
        call = asyncio.create_task(
            pool.run(offloaded.report_pid_and_sleep, progress=reports.put_nowait)
        )
        return await pool.run(offloaded.pid), await reports.get(), call

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        idle, busy, call = loop.run_until_complete(begin())
        assert is_alive(busy)
        assert is_alive(idle)
        loop.close()
        del loop, call
        wait_until(lambda: not is_alive(busy) and not is_alive(idle))


def test_calls_that_come_while_the_loop_shuts_down(
    driver: str, nothing_left: None, caplog: pytest.LogCaptureFixture
) -> None:
    """From the end of an asynchronous generator: they are served, and later ones as well."""
    loop = ringloop.EventLoop(driver)
    results: list[int] = []

    async def generator() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await asyncio.sleep(0)  # now the processes are about to end
            results.append(await offload.to_thread(int))

    async def main() -> AsyncGenerator[None, None]:
        assert await offload.to_process(offloaded.square, 1) == 1
        left_open = generator()
        await anext(left_open)
        return left_open

    try:
        left_open = loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_asyncgens())
        del left_open
        assert results == [0]
        assert caplog.messages == []
        assert not hasattr(loop, "_ringloop_offload")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # a generator after the shutdown
            assert loop.run_until_complete(offload.to_process(offloaded.square, 2)) == 4
            loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def test_a_loop_that_was_used_has_nothing_in_its_dict(run: Run) -> None:
    """That would slow down every call of its methods."""

    async def main() -> None:
        await offload.to_thread(int)
        loop = asyncio.get_running_loop()
        assert not isinstance(loop, ringloop.EventLoop) or vars(loop) == {}

    run(main())


def test_a_loop_in_another_thread(nothing_left: None) -> None:
    results: list[int] = []

    async def main() -> None:
        results.append(await offload.to_process(offloaded.square, 5))

    thread = threading.Thread(target=ringloop.run, args=(main(),))
    thread.start()
    thread.join(TIMEOUT_S)
    assert results == [25]


def test_a_forked_child_that_ends_leaves_the_workers_alone(run: Run) -> None:
    async def main() -> None:
        pid = await offload.to_process(offloaded.pid)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a fork with threads
            child = os.fork()
        if child == 0:
            try:
                from ringloop.offload import _processes  # noqa: PLC0415

                _processes._destroy_all()  # what its end would do
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert await offload.to_process(offloaded.pid) == pid

    run(main())


def program(tmp_path: Path, text: str) -> subprocess.Popen[str]:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(text))
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        start_new_session=True,
    )


def test_functions_of_the_main_script(tmp_path: Path) -> None:
    with program(
        tmp_path,
        """
        import asyncio
        from ringloop import offload

        def double(x):
            return 2 * x

        if __name__ == "__main__":
            print(asyncio.run(offload.to_process(double, 21)))
        """,
    ) as process:
        assert process.communicate(timeout=TIMEOUT_S)[0] == "42\n"


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_a_main_script_without_a_guard_is_told_so(tmp_path: Path, start_method: str) -> None:
    with program(
        tmp_path,
        f"""
        import asyncio
        from ringloop import offload

        def double(x):
            return 2 * x

        async def main():
            async with offload.ProcessPool(1, start_method={start_method!r}) as pool:
                print(await pool.run(double, 21))

        asyncio.run(main())
        """,
    ) as process:
        output = process.communicate(timeout=TIMEOUT_S)[0]
    assert process.returncode == 1
    assert 'put that under `if __name__ == "__main__":`' in output.splitlines()[-1]


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_workers_die_with_a_parent_that_is_killed(tmp_path: Path, start_method: str) -> None:
    """Also when they hold the GIL all the time."""
    with program(
        tmp_path,
        f"""
        import asyncio, offloaded
        from ringloop import offload

        def say(pid):
            print(pid, flush=True)

        async def main():
            pool = offload.ProcessPool(2, start_method={start_method!r})
            print(await pool.run(offloaded.pid), flush=True)
            await asyncio.gather(
                pool.run(offloaded.report_pid_and_hold_the_gil, progress=say),
                pool.run(offloaded.report_pid_and_sleep, progress=say),
            )

        if __name__ == "__main__":
            asyncio.run(main())
        """,
    ) as process:
        assert process.stdout is not None
        pids = {int(process.stdout.readline()) for _ in range(3)}
        assert len(pids) == 2
        children = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
        assert pids <= children
        process.kill()
        wait_until(lambda: not any(is_alive(pid) for pid in children))


def test_a_program_that_ends_without_closing_its_loop_ends(tmp_path: Path) -> None:
    with program(
        tmp_path,
        """
        import ringloop, offloaded
        from ringloop import offload

        if __name__ == "__main__":
            loop = ringloop.new_event_loop()
            print(loop.run_until_complete(offload.to_process(offloaded.square, 3)))
            call = loop.create_task(offload.to_process(offloaded.sleep, 60))
            loop.run_until_complete(offload.to_process(offloaded.square, 4))
        """,
    ) as process:
        output = process.communicate(timeout=TIMEOUT_S)[0]
    assert process.returncode == 0
    assert output.startswith("9\n")


def test_an_interrupt_at_the_terminal_is_the_programs(tmp_path: Path) -> None:
    with program(
        tmp_path,
        """
        import signal
        import ringloop, offloaded
        from ringloop import offload

        if __name__ == "__main__":
            # Whatever started the tests may ignore it, as a shell's background jobs do.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                ringloop.run(offload.to_process(
                    offloaded.report_pid_and_sleep, progress=lambda pid: print("begun", flush=True)
                ))
            except KeyboardInterrupt:
                print("interrupted")
        """,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=TIMEOUT_S)[0] == "interrupted\n"
    assert process.returncode == 0
