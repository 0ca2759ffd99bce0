"""What moves between host memory and a tier below it, and when."""
