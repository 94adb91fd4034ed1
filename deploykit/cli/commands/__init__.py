"""One module per command; each has one function of its name that returns an `Answer`."""
