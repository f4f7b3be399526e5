"""Recipes: each is a run from top to bottom, to be started as it is or copied and changed (`swin-mim copy`)."""
