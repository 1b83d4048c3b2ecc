"""Built manifests held against a recipe: how many of each thing, how many expected, and why."""
