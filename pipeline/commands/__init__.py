"""The commands of `bonafide`: one file a command, each with `main(argv)`; its docstring's first line is its help."""
