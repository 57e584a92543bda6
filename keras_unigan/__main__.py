"""`python -m keras_unigan` is the command `unigan`."""

from keras_unigan.cli import main

if __name__ == "__main__":
    main()
