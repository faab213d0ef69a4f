"""Games: a value for every set of players in, a value for every player out. Knows neither models nor data."""
