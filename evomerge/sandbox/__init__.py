"""Runs programs that nobody has read, as language models write them, where they can do no harm.

Each runs in a process of its own, without network, other processes, files to write, or the user's
environment, and with little time and memory; see `confined` for what holds it.
"""
