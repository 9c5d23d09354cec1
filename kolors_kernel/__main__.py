"""`python -m kolors_kernel` is the `kolors` command."""

import sys

from kolors_kernel.cli import main

sys.exit(main())
