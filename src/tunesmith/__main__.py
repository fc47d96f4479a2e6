"""python -m tunesmith, and torchrun -m tunesmith."""

from tunesmith.cli import main

main()
