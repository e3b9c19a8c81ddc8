"""python -m quadrivium"""

import sys

from quadrivium.cli import main

sys.exit(main())
