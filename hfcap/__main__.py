"""`python -m hfcap` is `hfcap`; `accelerate launch -m hfcap run RECIPE` starts it in several processes."""

from hfcap.cli import main

if __name__ == "__main__":
    main()
