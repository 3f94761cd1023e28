"""``python -m jaxlift`` is the command ``jaxlift``."""

import sys

from jaxlift.commands._main import main

if __name__ == "__main__":
    sys.exit(main())
