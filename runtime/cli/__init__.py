"""The command line. Each module holds a family of commands and a `register` for them."""
