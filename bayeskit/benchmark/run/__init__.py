"""Running a comparison: one trial a method and seed, stored and summarized."""
