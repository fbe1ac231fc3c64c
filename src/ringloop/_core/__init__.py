"""The core of the event loop: the iteration, the ready queue, timers, handles, the clock."""
