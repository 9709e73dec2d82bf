"""The parts of `stages.audit`.

`locks` reads locks and finds stale ones, `drawing` chooses arms, `checkout` runs them in a clone, `comparing` compares
new results with old ones, and `sample` uses all of these.
"""
