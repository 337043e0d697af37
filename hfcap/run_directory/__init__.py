"""What a run directory holds, the recipe inside, and which stages are done."""
