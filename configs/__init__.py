"""The recipes, one a file; `--config=NAME:PRESET` finds them by their names, too."""
