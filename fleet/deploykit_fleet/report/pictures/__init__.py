"""Pictures: SVG by hand, 360 units wide, so that their letters are as large as the page's on a phone and on a desk."""
