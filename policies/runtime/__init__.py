"""The runtime that executes a policy, the same in simulation and on a robot. numpy and the standard library only.

`Runner` turns observations into timed commands, a worker runs the policy, `Loop` keeps the deadlines and `Guard`
has the last word. Nothing is imported here: submodules load on demand.
"""
