"""The command line. Its commands are in `app`; what they do is in a file each, imported when the command runs."""
