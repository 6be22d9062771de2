"""`python -m fastcifar` is the command `fastcifar`."""

from fastcifar.cli import main

if __name__ == "__main__":
    main(prog_name="fastcifar")
