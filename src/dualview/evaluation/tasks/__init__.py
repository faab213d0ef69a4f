"""Real data with planted flaws, small models, and fixed, seeded training recipes."""
