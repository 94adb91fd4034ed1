"""From a gate that was missed to the best model that passes it: recipes, the ladder of what is tried, `tune`."""
