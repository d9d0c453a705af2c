"""Settings of the steps that find text which is there already, a file each."""
