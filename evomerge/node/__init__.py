"""What the processes of one machine say of themselves, and do once for all of them.

phases   the slow steps of a process, on the package's log
once     a step that one process takes while the others wait
"""
