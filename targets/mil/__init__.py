"""ML Programs (the model form of Core ML), read and executed on any operating system."""
