"""Run the command: `python -m flexkv_core.cli`."""

import sys

from flexkv_core.cli.main import main

sys.exit(main())
