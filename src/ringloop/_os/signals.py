"""Signals in the loop: a socket pair that Python's C handler writes to.

The wake-up fd is set whenever a loop runs in the main thread, not only while
handlers are installed: a SIGINT that lands between Python's last look at its
signals and the system call that waits would else go unnoticed until the next event.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from asyncio import unix_events
from typing import TYPE_CHECKING, Any, TypeVarTuple

from ringloop._net.watch import WeakWatch

if TYPE_CHECKING:
    from collections.abc import Callable

_StdlibLoop: Any = unix_events._UnixSelectorEventLoop
Ts = TypeVarTuple("Ts")


class SignalMethods:
    """add_signal_handler and what `CoreLoop.run_forever` calls around its work."""

    # The standard library's own, which need `_csock` and `_signal_handlers` only.
    _handle_signal = _StdlibLoop._handle_signal
    _check_signal = _StdlibLoop._check_signal

    def _init_signals(self) -> None:
        self._signal_handlers: dict[int, Any] = {}
        self._signal_rx: socket.socket | None = None
        self._signal_tx: socket.socket | None = None
        self._outer_wakeup_fd = -1
        self._signals_running = False

    @property
    def _csock(self) -> socket.socket:
        if self._signal_tx is None:
            rx, tx = socket.socketpair()
            try:
                rx.setblocking(False)
                tx.setblocking(False)
                WeakWatch(self, rx.fileno(), type(self)._read_signals)  # type: ignore[arg-type]
            except BaseException:
                rx.close()
                tx.close()
                raise
            self._signal_rx, self._signal_tx = rx, tx
        return self._signal_tx

    def _read_signals(self) -> None:
        assert self._signal_rx is not None
        try:
            numbers = self._signal_rx.recv(4096)
        except (BlockingIOError, InterruptedError):
            return
        for number in numbers:
            self._handle_signal(number)

    def add_signal_handler(self, sig: int, callback: Callable[[*Ts], Any], *args: *Ts) -> None:
        """Call `callback(*args)` in the loop when signal `sig` comes.

        Only in the main thread. Raises ValueError for a number that is no signal,
        RuntimeError for one that cannot be caught and outside the main thread.
        """
        taken = self._take_wakeup_fd()
        try:
            _StdlibLoop.add_signal_handler(self, sig, callback, *args)
        finally:
            if taken:
                self._settle_wakeup_fd()

    def remove_signal_handler(self, sig: int) -> bool:
        """Undo add_signal_handler(); True if there was a handler."""
        removed: bool = _StdlibLoop.remove_signal_handler(self, sig)
        if removed:
            self._settle_wakeup_fd()
        return removed

    def _take_wakeup_fd(self) -> bool:
        """Have signals written to our socket; False outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return False
        ours = self._csock.fileno()
        # In one step: a signal that comes while there is none would be lost.
        try:
            current = signal.set_wakeup_fd(ours, warn_on_full_buffer=False)
        except ValueError:
            return False  # where Python is embedded, `threading` may take another for it
        if current != ours:
            self._outer_wakeup_fd = current
        return True

    def _settle_wakeup_fd(self) -> None:
        """Keep the wake-up fd while we run or have handlers, else give it back."""
        if self._signals_running or self._signal_handlers:
            signal.set_wakeup_fd(self._csock.fileno(), warn_on_full_buffer=False)
            return
        try:
            current = signal.set_wakeup_fd(self._outer_wakeup_fd)
        except (OSError, ValueError):  # closed by its owner meanwhile
            current = signal.set_wakeup_fd(-1)
        # -1: the standard library's remove_signal_handler() was here before.
        if current not in (-1, self._csock.fileno()):
            signal.set_wakeup_fd(current)  # somebody took it from us meanwhile
        self._outer_wakeup_fd = -1

    def _enter_signals(self) -> None:
        """The loop starts to run."""
        self._signals_running = self._take_wakeup_fd()

    def _exit_signals(self) -> None:
        """The loop stops. With handlers installed, signals are kept for its next run."""
        if self._signals_running:
            self._signals_running = False
            self._settle_wakeup_fd()

    def _remove_signal_handlers(self) -> None:
        for number in list(self._signal_handlers):
            self.remove_signal_handler(number)

    def _close_signal_sockets(self) -> None:
        for sock in (self._signal_rx, self._signal_tx):
            if sock is not None:
                sock.close()
        self._signal_rx = self._signal_tx = None

    def _drop_signals_in_child(self) -> None:
        """In a forked child, whose signals must not be written to the parent's loop."""
        if self._signal_tx is not None:
            try:
                current = signal.set_wakeup_fd(-1)
            except ValueError:
                current = -1
            if current not in (-1, self._signal_tx.fileno()):
                signal.set_wakeup_fd(current)
            for sock in (self._signal_rx, self._signal_tx):
                assert sock is not None
                os.close(sock.detach())
            self._signal_rx = self._signal_tx = None
        self._signal_handlers = {}
        self._signals_running = False
        self._outer_wakeup_fd = -1
