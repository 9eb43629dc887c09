"""Study what runs say: paired comparisons, noise, findings, remedies, published results. No torch."""
