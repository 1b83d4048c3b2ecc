"""``python -m xvlm_data``."""

from xvlm_data.commands import main

main()
