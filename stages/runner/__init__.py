"""The runner behind `make repro`: stages side by side, with DVC's bookkeeping in one process.

`bookkeeping` does what DVC does before and after a command, `children` starts commands, `schedule` says which and when,
`display` shows it, `durations` remembers how long stages took.
"""
