"""The commands of `unlearn`, one file each."""
