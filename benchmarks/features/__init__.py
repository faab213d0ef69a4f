"""Feature methods on real pictures and tables: completeness, infidelity, agreement with exact references, cost."""
