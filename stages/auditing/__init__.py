"""What `stages.audit` is made of: `locks` reads them, `drawing` chooses arms, `comparing` holds new against old."""
