"""`python -m pdd_lightning`."""

from pdd_lightning.cli import main

if __name__ == "__main__":
    main()
