"""Scripted demonstrators. They may look at the true state of the simulation; policies never do."""
