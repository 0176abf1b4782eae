"""python -m fastndsm.cli"""

import sys

from . import main

sys.exit(main())
