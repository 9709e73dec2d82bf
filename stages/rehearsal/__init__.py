"""The parts of `stages/rehearse.py`: a throw-away copy of the project in which the stages of a plan run on little.

`scaling` decides what is changed, `inside` runs the stages of the copy, `work` is what their processes do, `table`
shows what was found, `drawing` chooses the papers that CI rehearses. No stage of a pipeline imports any of this.
"""
