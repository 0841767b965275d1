"""``python -m gpusoftmax``: the command line."""

from gpusoftmax.cli.app import main

if __name__ == "__main__":
    main()
