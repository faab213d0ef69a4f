"""What support spectrums are worth, measured."""
