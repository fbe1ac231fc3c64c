"""Operations that make a new name in a directory: a few at a time for each directory.

The kernel makes them one after the other, under the directory's lock, and whoever wants that
lock spins for it while its owner runs. Eight workers that create files in one directory are
one that works and seven that spin: on a machine with few cores the loop's own thread waited
up to 20 ms for one of them, most of all where ext4 is slow to create (it does not use again
the inodes of files that were removed in the last minutes, and looks at each). Three keep the
lock busy where a creation takes 25 us, as on ext4 at its best, but not where 9, as on tmpfs.

The lock is the directory's whatever it is called; two spellings only contend, as they
would anyway.
"""
from collections import deque
from weakref import WeakValueDictionary

import asyncio

cdef enum:
    AT_ONCE = 3  # one under the lock, one that is next, and one on its way from or to the loop

# By loop and path. A folder lives as long as one of its operations is in flight, which holds
# the loop, too: no other can get its id meanwhile.
_folders = WeakValueDictionary()


cdef class _Folder:
    def __cinit__(self):
        self.waiting = deque()


cdef class CreateOp(Op):
    cdef int start_in_folder(self, bytes path) except -1:
        """`start()` as soon as fewer than AT_ONCE others make names where `path` is."""
        cdef _Folder folder
        loop = asyncio.get_running_loop()
        key = (id(loop), path[:path.rfind(b"/") + 1])
        folder = _folders.get(key)
        if folder is None:
            folder = _folders[key] = _Folder()
        if folder.in_flight >= AT_ONCE:
            self.loop = loop
            folder.waiting.append(self)
            return 0
        return self.begin(folder)

    cdef int begin(self, _Folder folder) except -1:
        self.start()
        self.folder = folder
        folder.in_flight += 1
        return 0

    cdef int finish(self) except -1:
        if self.folder is not None:
            self.leave_folder()
        return Op.finish(self)

    cdef int leave_folder(self) except -1:
        """Have the next one begin; one that cannot fails, and the one behind it begins."""
        cdef CreateOp op
        cdef _Folder folder = self.folder
        self.folder = None
        folder.in_flight -= 1
        while folder.waiting and folder.in_flight < AT_ONCE:
            op = folder.waiting.popleft()
            if op.given_up:
                continue
            try:
                op.begin(folder)
            except BaseException as exc:
                op.fail(exc)
        return 0

    cdef int fail(self, object exc) except -1:
        for future in self.waiters or ():
            if not future.done():
                future.set_exception(exc)
        return 0

    cdef int cancel(self) except -1:
        self.given_up = True
        return Op.cancel(self)
