"""One file per command: a function `command` whose parameters are the options and whose docstring is the help."""
