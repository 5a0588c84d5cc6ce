"""What looks at clips, one file each."""
