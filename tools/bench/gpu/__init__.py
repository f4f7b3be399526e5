"""Everything that a GPU machine has to show: python -m tools.bench.gpu."""
