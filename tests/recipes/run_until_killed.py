"""`kolors`, killed as by the system once it has written so many objects: run_until_killed.py COUNT WORD..."""

from __future__ import annotations

import os
import signal
import sys

from kolors_zarr.store.places import Folder

from kolors_kernel.cli import main

if __name__ == "__main__":  # the processes that it makes of itself are not to be killed
    write, left = Folder.write, [int(sys.argv.pop(1))]

    def write_until_killed(self: Folder, key: str, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, key, data)

    Folder.write = write_until_killed  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
