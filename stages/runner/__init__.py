"""The runner behind `make repro`: several stages at a time, with DVC's bookkeeping in one process.

`bookkeeping` does what DVC does before and after a command, `children` starts commands, `schedule` decides which and
when, `display` shows what runs, and `durations` records how long stages take.
"""
