"""python -m yocobit"""

from yocobit.cli import main

main()
