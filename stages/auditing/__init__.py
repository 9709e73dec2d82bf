"""What `stages.audit` is made of.

`locks` reads locks and finds stale ones, `drawing` chooses arms, `checkout` runs them in a clone, `comparing` holds new
results against old, and `sample` puts these together.
"""
