"""The command line: commands, the tables that they print, live progress, and `list`."""
