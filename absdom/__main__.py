"""`python -m absdom` is the command `absdom`."""

from absdom.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
