"""`python -m swin_mim`: the same as the console command `swin-mim`."""

import sys

from swin_mim.cli.main import main

sys.exit(main())
