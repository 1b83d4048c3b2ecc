"""``python -m xvlm_data``."""

from xvlm_data.commands import main

if __name__ == "__main__":
    main(prog_name="xvlm-data")
