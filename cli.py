"""Both command lines for a checkout: ``python cli.py data …`` and ``python cli.py train …``."""

from __future__ import annotations

import sys


def main() -> None:
    """Hand the arguments to the package that is named first."""
    which, args = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if which == "data":
        from xvlm_data.commands import main as data_main

        data_main(args, prog_name="cli.py data")
    elif which == "train":
        from xvlm_train.commands import main as train_main

        train_main(args, prog_name="cli.py train")
    else:
        print("usage: python cli.py {data,train} COMMAND …   (--help on each)", file=sys.stderr)
        sys.exit(0 if which in ("-h", "--help") else 2)


if __name__ == "__main__":
    main()
