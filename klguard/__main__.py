"""`python -m klguard`."""

from klguard.cli import main

if __name__ == "__main__":
    main()
