"""``python -m kinoflow``."""

from kinoflow.cli import main

main()
