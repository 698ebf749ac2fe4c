"""python -m piecewise_training: the command line, as torchrun starts it."""

import sys

from piecewise_training.cli import main

sys.exit(main())
