"""How arrays lie on devices, and the collectives that move them."""
