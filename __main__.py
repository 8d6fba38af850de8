"""`python -m dejavid`, which torchrun and schedulers start."""

from .cli import main

if __name__ == "__main__":
    main()
