"""Planning above the policy. Nothing is imported here: submodules load on demand."""
