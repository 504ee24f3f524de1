"""What the TFLite target does to a flatbuffer."""
