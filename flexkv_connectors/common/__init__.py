"""What all engines' adapters share."""
