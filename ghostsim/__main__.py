"""``python -m ghostsim``."""

from ghostsim.cli import main

main()
