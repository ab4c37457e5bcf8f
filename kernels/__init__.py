"""Every operation of the search: its meaning in plain PyTorch, and later its fast versions."""
