"""What the Taylor framework says of methods, against what they give: a fidelity table."""
