"""`python -m bayeskit`: the command line."""

from bayeskit.cli import main

if __name__ == "__main__":
    main()
