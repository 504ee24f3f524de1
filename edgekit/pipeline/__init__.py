"""What the commands do: one function a stage, resumable by content."""
