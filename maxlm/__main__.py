"""Run the command line as `python -m maxlm`."""

import sys

from maxlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
