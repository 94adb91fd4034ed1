"""From a gate that was missed to the best model that passes it: the ladder of what is tried, `tune`, `auto`.

`deploykit.tune` climbs from a plain export to dearer steps until the goal is met: ranges, rounding, mixed precision,
training. What is found is a recipe; `deploykit.export(recipe=...)` makes the same artifact of it again. See README.md.
"""
