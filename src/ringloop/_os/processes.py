"""Child processes: subprocess.Popen starts them, a pidfd tells of their end.

Popen stays: its options (preexec_fn, pass_fds, user, process_group and their kin) are
what people count on, it starts with vfork where it can, and it runs no at-fork hooks.

No child watcher, no signal, no thread: the loop watches the child's pidfd, from any
thread. A signal that goes through the pidfd cannot hit a stranger that has the number
by now. Where there is no pidfd (an old kernel, a seccomp filter, no fd left), a thread
waits instead, without reaping: that is always done by the loop, once, so that the
number stays the child's as long as we might send it a signal.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import threading
import warnings
import weakref
from asyncio.futures import _set_result_unless_cancelled  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("asyncio")

# What is reported for a child whose exit status somebody else took, as in asyncio.
UNKNOWN_RETURNCODE = 255

# Python may have been built with the headers of an older kernel.
_HAS_PIDFD = (
    hasattr(os, "pidfd_open") and hasattr(os, "P_PIDFD") and hasattr(signal, "pidfd_send_signal")
)


class _ChildPipe(asyncio.Protocol):
    """What one of the child's pipes tells, passed on to the protocol of the process."""

    def __init__(self, process: SubprocessTransport, fd: int) -> None:
        self.process = process
        self.fd = fd
        self.transport: Any = None
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self.process._protocol.pipe_data_received(self.fd, data)

    def pause_writing(self) -> None:
        self.process._protocol.pause_writing()

    def resume_writing(self) -> None:
        self.process._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.process._pipe_lost(self.fd, exc)


class SubprocessTransport(asyncio.SubprocessTransport):
    """A child process and its pipes.

    All callbacks come after the protocol's connection_made() and before its
    connection_lost(), which comes when the process has ended and its pipes are closed.
    """

    def __init__(
        self,
        loop: Any,
        protocol: Any,
        process: subprocess.Popen[bytes],
        extra: dict[str, Any] | None,
    ) -> None:
        super().__init__(extra)
        self._extra: dict[str, Any]
        self._extra["subprocess"] = process
        self._loop = loop
        self._protocol = protocol
        self._proc: subprocess.Popen[bytes] | None = process
        self._pid = process.pid
        self._pidfd = -1
        self._returncode: int | None = None
        self._closed = False
        self._finished = False
        self._exit_waiters: list[asyncio.Future[int]] = []
        self._pipes: dict[int, _ChildPipe] = {}

    def __repr__(self) -> str:
        state = "running" if self._returncode is None else f"returncode={self._returncode}"
        closed = " closed" if self._closed else ""
        pipes = "".join(f" {fd}={pipe.transport!r}" for fd, pipe in self._pipes.items())
        return f"<SubprocessTransport{closed} pid={self._pid} {state}{pipes}>"

    # -- the beginning ---------------------------------------------------------------

    def _begin(self) -> None:
        """Connect the pipes and wait for the end of the process."""
        proc = self._proc
        assert proc is not None
        for fd, file in enumerate((proc.stdin, proc.stdout, proc.stderr)):
            if file is not None:
                pipe = self._pipes[fd] = _ChildPipe(self, fd)
                make = self._loop._make_read_pipe_transport
                if fd == 0:
                    make = self._loop._make_write_pipe_transport
                pipe.transport = make(file, pipe)
        # After connection_made() of the pipes and before anything that they tell.
        self._loop.call_soon(self._protocol.connection_made, self)
        try:
            if not _HAS_PIDFD:
                raise NotImplementedError
            self._pidfd = os.pidfd_open(self._pid)
        except ProcessLookupError:
            self._loop.call_soon(self._reap)  # somebody else did, or SIGCHLD is ignored
        except (OSError, NotImplementedError):
            threading.Thread(
                target=_wait_in_thread,
                args=(self._pid, weakref.WeakMethod(self._reap)),
                name=f"wait for process {self._pid}",
                daemon=True,
            ).start()
            self._loop._waited_for.add(self)
        else:
            self._loop._add_reader(self._pidfd, self._reap)

    def _undo(self) -> None:
        """After a failure of _begin(): leave no process, no zombie, no fd."""
        proc = self._proc
        assert proc is not None
        self._closed = True
        proc.kill()
        proc.wait()
        for fd, file in enumerate((proc.stdin, proc.stdout, proc.stderr)):
            transport = self.get_pipe_transport(fd)
            if transport is not None:
                transport.close()  # which owns the file
            elif file is not None:
                file.close()

    # -- the end ---------------------------------------------------------------------

    def _wait_status(self, options: int) -> os.waitid_result | None:
        """waitid(2) without blocking; None while the process runs."""
        by_pidfd = self._pidfd >= 0
        kind, number = (os.P_PIDFD, self._pidfd) if by_pidfd else (os.P_PID, self._pid)
        return os.waitid(kind, number, os.WEXITED | os.WNOHANG | options)

    def _reap(self) -> None:
        """Take the exit status, which is there once only, and tell."""
        assert self._proc is not None
        try:
            status = self._wait_status(0)
        except OSError as err:
            # Whoever reaped it through the Popen object left the result there.
            returncode = self._proc.returncode
            if returncode is None:
                returncode = UNKNOWN_RETURNCODE
                logger.warning(
                    "the exit status of child process %d was taken by somebody else (%s): "
                    "its returncode is reported as %d",
                    self._pid,
                    err,
                    returncode,
                )
        else:
            if status is None:
                return  # a spurious wake-up
            exited = status.si_code == os.CLD_EXITED
            returncode = status.si_status if exited else -status.si_status
        if self._pidfd >= 0:
            self._loop._remove_reader(self._pidfd)
            self._close_pidfd()
        self._loop._waited_for.discard(self)
        self._returncode = self._proc.returncode = returncode
        if self._loop.get_debug():
            logger.info("%r exited with return code %r", self, returncode)
        try:
            self._protocol.process_exited()
        finally:
            self._finish()
            # Whatever the pipes do: a child of the child may keep them open for long.
            self._wake_waiters()

    def _close_pidfd(self) -> None:
        fd, self._pidfd = self._pidfd, -1
        if fd >= 0:
            os.close(fd)

    def _pipe_lost(self, fd: int, exc: Exception | None) -> None:
        try:
            self._protocol.pipe_connection_lost(fd, exc)
        finally:
            self._finish()

    def _finish(self) -> None:
        """Say connection_lost() when all is over."""
        if self._returncode is None or not all(pipe.lost for pipe in self._pipes.values()):
            return
        if self._finished:
            return
        self._finished = True
        protocol = self._protocol
        self._protocol = self._proc = None
        protocol.connection_lost(None)

    def _wake_waiters(self) -> None:
        waiters, self._exit_waiters = self._exit_waiters, []
        for waiter in waiters:
            _set_result_unless_cancelled(waiter, self._returncode)

    async def _wait(self) -> int:
        """The return code, once the process has ended."""
        if self._returncode is not None:
            return self._returncode
        waiter: asyncio.Future[int] = self._loop.create_future()
        self._exit_waiters.append(waiter)
        return await waiter

    def close(self) -> None:
        """Close the pipes, and kill the process if it still runs."""
        if self._closed:
            return
        self._closed = True
        try:
            for pipe in self._pipes.values():
                pipe.transport.close()
        finally:
            self._kill_if_running()

    def _kill_if_running(self) -> None:
        if self._proc is None or self._returncode is not None:
            return
        try:
            # Its status is left for _reap(). A forked child hears that it has no such child.
            if self._wait_status(os.WNOWAIT) is not None:
                return
            if self._loop.get_debug():
                logger.warning("Close running child process: kill %r", self)
            self._proc.kill()
        except (ChildProcessError, PermissionError):
            pass  # reaped by somebody else; runs as another user

    def __del__(self) -> None:
        # Until the process ends or the loop is closed, the loop keeps us alive.
        if self._closed:
            self._close_pidfd()
            return
        self._closed = True
        text = f"unclosed transport {self!r}"
        self._kill_if_running()
        self._close_pidfd()
        # Last: it may raise.
        warnings.warn(text, ResourceWarning, stacklevel=2, source=self)

    # -- what asyncio asks of a transport --------------------------------------------

    def send_signal(self, signal_: int) -> None:
        """Send it to the process; nothing happens if that has just ended.

        Raises ProcessLookupError after connection_lost(), PermissionError if the
        process may not be signalled.
        """
        if self._proc is None:
            raise ProcessLookupError
        if self._returncode is not None:
            return
        try:
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, signal_)
            else:
                os.kill(self._pid, signal_)
        except ProcessLookupError:
            pass

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def get_pid(self) -> int:
        return self._pid

    def get_returncode(self) -> int | None:
        return self._returncode

    def get_pipe_transport(self, fd: int) -> asyncio.BaseTransport | None:
        pipe = self._pipes.get(fd)
        transport: asyncio.BaseTransport | None = pipe.transport if pipe is not None else None
        return transport

    def is_closing(self) -> bool:
        return self._closed

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol


def _wait_in_thread(pid: int, reap: weakref.WeakMethod[Callable[[], None]]) -> None:
    """Wait for the end of a process, in the place of a pidfd; leave the status there."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        pass  # somebody else reaped it
    method: Any = reap()
    if method is not None:
        try:
            method.__self__._loop.call_soon_threadsafe(method)
        except RuntimeError:
            pass  # the loop is closed; Popen cleans up


class ProcessMethods:
    """What subprocess_exec() and subprocess_shell() of the base class call."""

    def _init_processes(self) -> None:
        # What a thread waits for. The thread itself must not keep it alive: a process
        # whose loop was closed is killed when its transport is collected.
        self._waited_for: set[SubprocessTransport] = set()

    create_future: Callable[[], asyncio.Future[None]]
    call_soon: Callable[..., asyncio.Handle]
    get_debug: Callable[[], bool]

    async def _make_subprocess_transport(
        self,
        protocol: asyncio.SubprocessProtocol,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        extra: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> SubprocessTransport:
        process = subprocess.Popen(
            args,
            shell=shell,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            universal_newlines=False,
            bufsize=bufsize,
            **kwargs,
        )
        transport = SubprocessTransport(self, protocol, process, extra)
        try:
            transport._begin()
        except BaseException:
            transport._undo()
            raise
        if self.get_debug():
            program = args if isinstance(args, (bytes, str)) else args[0]
            logger.debug("process %r created: pid %s", program, process.pid)
        made = self.create_future()
        self.call_soon(_set_result_unless_cancelled, made, None)
        try:
            await made  # until connection_made() was called
        except BaseException as exc:
            transport.close()
            if isinstance(exc, asyncio.CancelledError):
                await transport._wait()
            raise
        return transport
