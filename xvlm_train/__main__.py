"""``python -m xvlm_train``, as ``torchrun -m xvlm_train`` calls it."""

from xvlm_train.commands import main

if __name__ == "__main__":
    main(prog_name="xvlm-train")
