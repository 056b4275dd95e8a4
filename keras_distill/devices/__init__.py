"""Training on several devices, of one worker or of many."""
