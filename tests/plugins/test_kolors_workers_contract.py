"""A pool of two keeps the contract too; apart from the other tests, whose module every worker imports."""

from __future__ import annotations

from kolors_workers.config import Pool

from kolors_kernel.testing import WorkersContract


class TestPoolOfTwo(WorkersContract):
    config = Pool(count=2)
