"""What is done behind the four tabs of the page, and the plain commands that do the same."""
