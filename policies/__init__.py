"""Action heads, policies and the runtime that executes them. Nothing is imported here: submodules load on demand."""
