"""The program `featcache`, from a checkout: `python cli.py extract --backbone vgg16`."""

from featcache.__main__ import main

if __name__ == "__main__":
    main()
