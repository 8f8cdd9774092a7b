"""A package, since torch-fidelity installs a `tests` of its own that would otherwise come first."""
