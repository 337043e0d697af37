"""What several families of captioners are built of."""
