"""``python -m offlinerl`` runs the command line."""

import sys

from offlinerl.cli import main

sys.exit(main())
