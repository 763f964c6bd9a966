"""One file a command of `vtc`: its options, and what it prints. The work is done in the rooms below."""
