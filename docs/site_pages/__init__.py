"""What the documentation is generated from; each module has `pages()`: address on the site -> Markdown."""
